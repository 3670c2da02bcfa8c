"""Choice letters in the manners in which people and models write them."""
# ruff: noqa: RUF001  Full-width letters are what is tested.

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.rewards.choice import choice_reward, chosen


@pytest.mark.parametrize(
    "completion",
    [
        "B",
        "b",
        " b. ",
        "(B)",
        "(b)",
        "b)",
        "[B]",
        "B.",
        "B:",
        "**B**",
        "**B.**",
        "`B`",
        '"B"',
        "$B$",
        "Ｂ",
        "（B）",
        "B. a cat",
        "(b) a cat",
        "**B)** a cat",
        "B a cat",
        "The answer is B.",
        "The answer is (B).",
        "The answer is **B**.",
        "the answer is b",
        "The answer is (b) a cat",
        "The correct answer is: B",
        "Answer: B",
        "Answer:\nB",
        "answer: **B. a cat**",
        "Final answer: $\\boxed{B}$",
        "\\boxed{\\text{B}}",
        "\\boxed{(B)}",
        "I choose B, because A dog has no wings.",
        "Option B",
        "I think that it is B.",
        "It is not A but B.",
        "A is wrong, so is C. The answer is B.",
        "The answer is A. No, wait: the answer is B",
        "选B",
        "选择B",
        "应选（B）",
        "答案是B",
        "答案：B",
        "正确答案为 B。",
        "故选：B",
        "我认为是B。",
        "Answer: B\n\nExplanation: Option A is wrong because it has no wings.",
        "B is correct. A is wrong.",
        "The answer is B. Option C shows a dog.",
        "Respuesta: B. La opción C muestra un perro.",
        "A is incorrect, so B",
        "Option A is wrong. Option B is right.",
        "It is not option A, it is B",
        "The answer isn't A but B",
        "B, not A",
        "It is not red but B",
        "Answer: B (not C)",
        "答案是B。选项A错误。",
        "A错误，B正确",
        # Other languages.
        "Die richtige Antwort ist B weil es rot ist",
        "Die Antwort ist nicht A, sondern B",
        "La respuesta es B porque es roja",
        "La bonne réponse est la lettre B.",
        "A resposta correta é B",
        "A melhor opção é B",
        "Doğru cevap B şıkkıdır",
        "Cevap B'dir.",
        "정답은 A가 아니라 B이다",
        "답은 b",
        "답은 b입니다",
        "正解：b",
        "正解はBです。Aは間違いです。",
        "الإجابة الصحيحة هي B",
        "คำตอบคือ ข้อ B",
        # As data sets list them.
        "B、狗",
        "B.狗",
        "b、狗",
        "b.狗",
        # Cyrillic and Greek.
        "В",
        "Ответ: В",
        "Правильный ответ — В.",
        "В) кот",
        "Η απάντηση είναι Β",
    ],
)
def test_all_of_these_take_b(completion: str) -> None:
    assert chosen(completion) == "B"
    assert choice_reward(completion, "(B)") == 1.0
    assert choice_reward(completion, "A") == 0.0


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "A dog",
        "A dog is here.",
        "The answer is A dog",
        "the answer is a dog",
        "I think so",
        "I'm sure",
        "a cat",
        "Be good",
        "It is in Category B2.",
        "vitamin-rich ABC",
        "A-frame house",
        "A or B",
        "The answer is A or B",
        "The answer is A/B",
        "Die Antwort ist A oder B",
        "La respuesta no es B",
        "В этом доме живёт кот",
        "Ответ: В этом доме живёт кот",
        "С котом",
        "Ação",
        "A, B, C, D",
        "A. B. C. D.",
        "not B",
        "B's and C's",
        "Z",
        "狗",
    ],
)
def test_none_of_these_takes_an_option(completion: str) -> None:
    assert chosen(completion) is None
    assert choice_reward(completion, "A") == 0.0


def test_a_stands_for_the_option_where_no_word_makes_it_an_article() -> None:
    for text in (
        "A",
        "a",
        "A.",
        "A: a dog",
        "The answer is A",
        "The answer is A because it barks",
        "选A",
        "A is right",
        "Die richtige Antwort ist A weil es rot ist",
        "La respuesta es A porque es roja",
        "Réponse : A car il est rouge",
        "Doğru cevap A şıkkıdır",
        "Cevap A'dır",
        "A şıkkı",
        "A weil es rot ist",
        "A가 정답입니다",
        "答案：A。因为B不对",
        "Правильный ответ — А",
    ):
        assert chosen(text) == "A", text


def test_an_answer_without_an_option_is_an_error() -> None:
    with pytest.raises(ValueError, match="no option in the answer 'a dog'"):
        choice_reward("A", "a dog")


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_text_takes_one_option_or_none(text: str) -> None:
    assert chosen(text) in {None, *"ABCDEFGHIJ"}
