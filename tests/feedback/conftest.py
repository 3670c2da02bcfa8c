from tests.feedback.office import database, make_item, office, postgres_url

__all__ = ["database", "make_item", "office", "postgres_url"]
