"""Who may judge: invitations, sessions, and what is left of somebody who is forgotten.

Tokens are 256 random bits and are kept as hashes: who reads the database cannot come in with what lies there.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from pipeline.feedback.database import Database
from pipeline.feedback.records import RaterRole
from pipeline.feedback.tables import Audit, Events, Raters, Sessions

_NAME = re.compile(r"[\w.-]{1,64}")


class Refused(PermissionError):
    """Somebody may not come in; the message can be shown to him."""


@dataclass(frozen=True)
class Person:
    """Somebody who has come in."""

    id: int
    name: str
    role: RaterRole
    csrf: str
    """What shows that a request comes from the page, and not from another one in the same browser."""


def hashed(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


class Register:
    """The raters of a store."""

    def __init__(self, database: Database, *, session_s: float, clock: Callable[[], float] = time.time):
        self._database = database
        self._session_s = session_s
        self._clock = clock

    def invite(self, name: str, role: RaterRole, *, days: float, by: int | None = None) -> str:
        """Makes a rater, and returns the token with which he comes in; nobody can read it later.

        Raises:
            ValueError: the name is taken, or no name.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"name={name!r}: a pseudonym of up to 64 letters, digits, dots and dashes")
        token, now = secrets.token_urlsafe(32), self._clock()
        row = {
            "name": name,
            "role": role.value,
            "token_hash": hashed(token),
            "created_at": now,
            "expires_at": now + days * 86400,
            "is_revoked": False,
        }
        try:
            with self._database.write() as connection:
                (rater_id,) = connection.execute(insert(Raters).values(row).returning(Raters.id)).one()
                self._note(connection, by, "invited", f"{role.value} {rater_id}")
        except IntegrityError:
            raise ValueError(f"name={name!r} is taken; choose another") from None
        return token

    def log_in(self, token: str) -> tuple[str, Person]:
        """A new session's own token, and whose it is.

        Raises:
            Refused: the invitation is unknown, has expired or was revoked.
        """
        now = self._clock()
        with self._database.write() as connection:
            row = connection.execute(select(Raters).where(Raters.token_hash == hashed(token))).one_or_none()
            is_good = row is not None and not row.is_revoked and row.expires_at > now
            self._note(connection, row.id if row else None, "log in" if is_good else "log in refused", "")
            if row is not None and is_good:
                session = secrets.token_urlsafe(32)
                until = min(now + self._session_s, row.expires_at)
                values = {"token_hash": hashed(session), "rater_id": row.id, "created_at": now, "expires_at": until}
                connection.execute(insert(Sessions).values(values))
                connection.execute(delete(Sessions).where(Sessions.expires_at <= now))
                return session, _person(row.id, row.name, row.role, session)
        raise Refused("this invitation is not known here, has expired or was withdrawn; ask for another one")

    def person(self, session: str | None) -> Person:
        """Whose session this is.

        Raises:
            Refused: nobody's, or it has ended.
        """
        if session is not None:
            with self._database.read() as connection:
                row = connection.execute(
                    select(Raters.id, Raters.name, Raters.role)
                    .join(Sessions, Sessions.rater_id == Raters.id)
                    .where(
                        Sessions.token_hash == hashed(session),
                        Sessions.expires_at > self._clock(),
                        Raters.is_revoked.is_(False),
                        Raters.name.is_not(None),
                    )
                ).one_or_none()
            if row is not None:
                return _person(row.id, row.name, row.role, session)
        raise Refused("please log in")

    def log_out(self, session: str) -> None:
        """Ends a session; its token is worth nothing from now on."""
        with self._database.write() as connection:
            connection.execute(delete(Sessions).where(Sessions.token_hash == hashed(session)))

    def revoke(self, name: str, *, by: int | None = None) -> None:
        """Keeps a rater out from now on; what he said stays.

        Raises:
            KeyError: nobody has this name.
        """
        with self._database.write() as connection:
            rater_id = self._id(connection, name)
            connection.execute(update(Raters).where(Raters.id == rater_id).values(is_revoked=True))
            connection.execute(delete(Sessions).where(Sessions.rater_id == rater_id))
            self._note(connection, by, "revoked", str(rater_id))

    def forget(self, name: str) -> None:
        """Takes away all that tells who a rater was, and what he did on the page; judgements stay, as nobody's.

        Raises:
            KeyError: nobody has this name.
        """
        with self._database.write() as connection:
            rater_id = self._id(connection, name)
            gone = {"name": None, "token_hash": None, "is_revoked": True}
            connection.execute(update(Raters).where(Raters.id == rater_id).values(gone))
            connection.execute(delete(Sessions).where(Sessions.rater_id == rater_id))
            connection.execute(delete(Events).where(Events.rater_id == rater_id))
            connection.execute(delete(Audit).where(Audit.rater_id == rater_id))
            self._note(connection, None, "forgotten", "")
        self._database.purge()

    def note(self, rater_id: int | None, action: str, detail: str = "") -> None:
        """Writes something into the audit log."""
        with self._database.write() as connection:
            self._note(connection, rater_id, action, detail)

    def audit(self) -> list[tuple[float, str | None, str, str]]:
        """The log: when, who, what, and more of it."""
        with self._database.read() as connection:
            rows = connection.execute(
                select(Audit.at, Raters.name, Audit.action, Audit.detail)
                .outerjoin(Raters, Raters.id == Audit.rater_id)
                .order_by(Audit.id)
            )
            return [(row.at, row.name, row.action, row.detail) for row in rows]

    def num_of(self, role: RaterRole) -> int:
        """How many have this role, and may come in."""
        with self._database.read() as connection:
            where = (Raters.role == role.value, Raters.is_revoked.is_(False), Raters.expires_at > self._clock())
            return connection.execute(select(func.count()).select_from(Raters).where(*where)).scalar_one()

    def _id(self, connection: Connection, name: str) -> int:
        found = connection.execute(select(Raters.id).where(Raters.name == name)).scalar_one_or_none()
        if found is None:
            raise KeyError(f"no rater is called {name!r}")
        return found

    def _note(self, connection: Connection, rater_id: int | None, action: str, detail: str) -> None:
        values = {"at": self._clock(), "rater_id": rater_id, "action": action, "detail": detail}
        connection.execute(insert(Audit).values(values))


def _person(rater_id: int, name: str | None, role: str, session: str) -> Person:
    assert name is not None
    return Person(rater_id, name, RaterRole(role), hashed(f"csrf/{session}"))
