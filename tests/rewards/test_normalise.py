"""What counts as the same answer, in English, Chinese, Japanese, Thai, Arabic and Hindi."""
# ruff: noqa: RUF001  Digits of other scripts are what is tested.

import time
import unicodedata

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.rewards.contains import contains
from pipeline.rewards.distance import distance_reward, is_integer
from pipeline.rewards.exact_match import exact_match
from pipeline.rewards.normalise import fold, normalise, units
from pipeline.rewards.overlap import bleu, corpus_bleu, rouge_l, tokenizer_of
from pipeline.rewards.wer import corpus_wer, wer, wer_reward


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It is  a CAT.", "it is a cat"),
        ("(B).", "b"),
        ("**7**", "7"),
        ("\\boxed{7}", "boxed 7"),
        ("It's 'quoted', isn\u2019t it?", "it's quoted isn't it"),
        ("e-mail: covid-19_b", "e mail covid 19 b"),
        # Numbers keep their signs and points.
        ("-5, 3.5 and -.5.", "-5 3.5 and -.5"),
        ("(\u22125) '-5' 2 -3", "-5 -5 2 -3"),
        ("3\u20134 2026-11-26 12:30 1/2 1,000.", "3-4 2026-11-26 12:30 1/2 1,000"),
        ("wait...7", "wait 7"),
        ("50 % or 50%, $5, C++, C#, AT&T", "50% or 50% $5 c++ c# at&t"),
        ("x=7", "x = 7"),
        ("\U0001f44d7", "\U0001f44d 7"),
        # Unicode's other forms of the same.
        (unicodedata.normalize("NFD", "Café"), "café"),
        ("\uff21\uff22\uff13", "ab3"),
        ("ISPARTA \u0130stanbul ılık", "isparta istanbul ilik"),
        ("i\u0307\u0307 \u0131\u0307 \u0130\u0301", "i i í"),
        ("x\u00b2 \ufb01n stra\u00dfe", "x2 fin strasse"),
        ("a\u200bb\u00adc \u200e7", "abc 7"),
        # Scripts without blanks: a character is a word, with its marks.
        ("这是一只猫。", "这 是 一 只 猫"),
        ("温度是-5度", "温 度 是 -5 度"),
        ("iPhone很好", "iphone 很 好"),
        ("ｶﾒﾗと「ガ」ー", "カ メ ラ と ガ ー"),
        ("a'猫, 猫'a, กิ'a, l'été'a", "a 猫 猫 a กิ a l'été'a"),
        ("กินที่", "กิ น ที่"),
        # Scripts with blanks: marks belong to their words.
        ("यह एक बिल्ली है।", "यह एक बिल्ली है"),
        ("क्\u200dष ७", "क्ष 7"),
        ("هل هي قطة؟ ٣٫٥ و٪", "هل هي قطة 3.5 و%"),
        ("قـــطة", "قطة"),
        ("고양이 한 마리.", "고양이 한 마리"),
        # Counters and endings of Korean are written to what they belong to.
        ("3마리, 7입니다.", "3 마리 7 입니다"),
        ("MP3는 50%입니다", "mp3 는 50% 입니다"),
        ("제3", "제3"),
        # Units may be written to their numbers or beside them.
        ("5kg, 1.5 kg and -3.5kg", "5 kg 1.5 kg and -3.5 kg"),
        ("7°C 7 °C 7° C 7℃ 90 ° for", "7 °c 7 °c 7 °c 7 °c 90 ° for"),
        ("重5kg的, 약5kg입니다", "重 5 kg 的 약5 kg 입니다"),
        ("in the 1990s, 10s", "in the 1990s 10 s"),
        ("b5kg 7th 3D 10x 4K 5kgs m2", "b5kg 7th 3d 10x 4k 5kgs m2"),
        # Nothing but punctuation is that punctuation.
        ("?!", "?!"),
        (" ", ""),
    ],
)
def test_words_of_a_text(text: str, words: str) -> None:
    assert normalise(text) == words


def test_folding_keeps_punctuation_and_its_length() -> None:
    assert fold(" Ａ  cat。 ") == "a cat。"


def test_a_digit_that_this_python_does_not_know_stays_as_it_is() -> None:
    assert normalise("\U0001ccf0 7") == "\U0001ccf0 7"  # of Unicode 16


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30))
def test_what_is_normalised_stays_as_it_is(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once


CONTAINED = [
    ("The answer is: 7.", "7"),
    ("The answer is (B).", "B"),
    ("这是一只黑猫。", "黑猫"),
    ("答案是７。", "7"),
    ("これは猫です。", "猫"),
    ("นี่คือแมว", "แมว"),
    ("الجواب هو ٧.", "7"),
    ("هذه قطة، صغيرة", "قطة"),
    ("यह बिल्ली है।", "बिल्ली"),
    ("고양이가 3마리 있습니다", "3"),
    ("정답은 7입니다.", "7"),
    ("It weighs 5kg.", "5"),
    ("It weighs 5 kg.", "5kg"),
    ("Das ist ISTANBUL.", "istanbul"),
]
NOT_CONTAINED = [
    ("seventeen", "seven"),
    ("-7", "7"),
    ("7.5", "7"),
    ("70", "7"),
    ("这是一只狗。", "猫"),
    ("กิน", "ก"),  # a letter without its vowel
    ("बिल्लियाँ", "बिल्ली"),  # another word
    ("قطتان", "قطة"),
    ("13마리", "3"),
    ("the 7th", "7"),
]


@pytest.mark.parametrize(("completion", "answer"), CONTAINED)
def test_the_answer_is_seen_where_a_reader_sees_it(completion: str, answer: str) -> None:
    assert contains(completion, answer) == 1.0
    assert exact_match(completion, answer) == 0.0
    assert exact_match(f"« {answer} ».", answer) == 1.0


@pytest.mark.parametrize(("completion", "answer"), NOT_CONTAINED)
def test_the_answer_is_not_seen_inside_another_word(completion: str, answer: str) -> None:
    assert contains(completion, answer) == 0.0


@pytest.mark.parametrize("text", ["今天天气很好", "カメラです", "ฉันรักแมว", "ຂ້ອຍຮັກແມວ", "ខ្ញុំឆ្មា", "ကြောင်"])
def test_scripts_without_blanks_have_a_character_error_rate(text: str) -> None:
    assert units(text) == list(text)
    wrong = "x" + text[1:]
    assert wer(text, text) == 0.0
    assert wer(wrong, text) == pytest.approx(jiwer.cer(text, wrong)) == pytest.approx(1 / len(text))
    assert wer_reward(text + text[0], text) == pytest.approx(1 - 1 / len(text))


def test_mixed_text_counts_words_of_the_one_script_and_characters_of_the_other() -> None:
    assert units("iPhone 很好用。") == ["iphone", "很", "好", "用"]
    assert wer("iPad很好用", "iPhone 很好用。") == 1 / 4
    # One of two characters and one of three words.
    assert corpus_wer(["好天", "a b x"], ["今天", "a b c"]) == pytest.approx(2 / 5)


def test_words_of_scripts_with_blanks_are_words() -> None:
    assert wer("यह एक कुत्ता है", "यह एक बिल्ली है।") == 1 / 4
    assert wer("هذه قطة كبيرة", "هذه قطة صغيرة.") == pytest.approx(1 / 3)
    assert rouge_l("यह एक कुत्ता है", "यह एक बिल्ली है।") == pytest.approx(3 / 4)
    assert rouge_l("今天很好", "今天很坏") == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("answer", "tokenizer"),
    [
        ("a small cat, 7", "13a"),
        ("Это кот.", "13a"),
        ("今天天气很好", "zh"),
        ("今天用 iPhone 听音乐会吧", "zh"),
        ("日本語は難しい", "char"),
        ("ฉันรักแมว", "char"),
        ("यह एक बिल्ली है।", "intl"),
        ("هذه قطة صغيرة", "intl"),
        ("7", "13a"),
    ],
)
def test_bleu_cuts_a_text_as_its_script_asks(answer: str, tokenizer: str) -> None:
    assert tokenizer_of(answer) == tokenizer
    assert bleu(answer, answer) == 1.0


def test_bleu_of_chinese_by_hand() -> None:
    # 3/4 characters, 2/3 pairs, 1/2 triples, 0/1 smoothed to 1/2: (1/8) ^ (1/4). As one word it would be nothing.
    assert bleu("今天很好", "今天很坏") == pytest.approx((1 / 8) ** 0.25)
    by_hand = (6 / 8 * 4 / 6 * 2 / 4 * 1 / 4) ** 0.25  # twice the same counts, the last smoothed once
    assert corpus_bleu(["今天很好", "a b c d"], ["今天很坏", "a b c e"]) == pytest.approx(by_hand)
    assert bleu(unicodedata.normalize("NFD", "où est été là"), "où est été là") == 1.0


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ("有７只猫。", "7", 1.0),
        ("七只", "7", 1.0),
        ("二十三只", "2", 0.0),  # no single numeral
        ("٧ قطط", "7", 1.0),
        ("७ बिल्लियाँ", "८", 0.8),
        ("\u22121", "1", 0.6),
        ("1,000 of them", "1000", 1.0),
        ("it is .5", "0.5", 1.0),
        ("고양이가 3마리 있습니다", "3", 1.0),
        ("3개", "4", 0.8),
        ("有两只猫", "2", 1.0),
        ("兩隻", "2", 1.0),
        ("十二个", "12", 1.0),
        ("二十", "21", 0.8),
        ("十", "10", 1.0),
        ("一百零五只", "105", 1.0),
        ("一百二十三", "123", 1.0),
        ("一共有三个", "3", 1.0),
        ("一共有5个人", "5", 1.0),
        ("图中有一只猫和三只狗", "1", 1.0),
        ("第一张图里有三只", "3", 1.0),
    ],
)
def test_numbers_of_any_script_are_numbers(completion: str, answer: str, reward: float) -> None:
    assert distance_reward(completion, answer) == pytest.approx(reward)


def test_whole_numbers_of_any_script_are_whole_numbers() -> None:
    assert [is_integer(text) for text in ("７", "٧", "\u22127", "7.", "3.5", "七只")] == [True] * 4 + [False] * 2


@pytest.mark.parametrize("text", ["三四个", "一百五", "二零二四年", "一千", "第一", "万一", "唯一", "一起", "한 마리"])
def test_numerals_that_are_no_count_or_too_much_for_a_rule_are_no_number(text: str) -> None:
    assert distance_reward(text, "1") == distance_reward(text, "4") == distance_reward(text, "105") == 0.0


@pytest.mark.parametrize("text", ["1,", "1.1", "° ", "5kg", "   ", "3마리", "İ", "a'"])
def test_long_texts_take_no_time(text: str) -> None:
    begun = time.perf_counter()
    normalise(text * 30_000)
    assert time.perf_counter() - begun < 10.0
