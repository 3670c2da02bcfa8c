"""Steps on text: one Unicode form, nothing that nobody sees, bounds on its length."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal, cast

from pipeline.data.schema import Reason, RowError, split_content
from pipeline.records import MediaKind

_LINE_ENDS = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_BLANKS_AT_LINE_ENDS = re.compile(r"[^\S\n]+(?=\n|\Z)")

# Formats (category Cf), but those that are seen, such as the Arabic number sign; then private use, surrogates and
# noncharacters. A test compares these ranges with the Unicode database.
_UNSEEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"
    "\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f"
    "\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd\ud800-\udfff\ufdd0-\ufdef"
) + "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))

# Scripts whose letters join or stack: Arabic to Tibetan, Myanmar, Khmer, Mongolian, and their extensions.
_JOINING = (
    "\u0600-\u061b\u061d-\u08ff\u0900-\u109f\u1780-\u180d\u180f-\u18af\u1a20-\u1aaf\u1b00-\u1c4f\u1cd0-\u1cff"
    "\ua800-\ua82f\ua840-\ua8ff\ua900-\ua9ff\uaa00-\uaa7f\uabc0-\uabff\ufb50-\ufdcf\ufdf0-\ufdff\ufe70-\ufefc"
    "\U00010a00-\U00010aff\U00010d00-\U00010fff\U00011000-\U00011fff\U0001e900-\U0001e95f"
)
# Written without blanks: a zero-width space tells where lines may break.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_EMOJI = "\xa9\xae\u203c\u2049\u2100-\u2bff\u3030\u303d\u3297\u3299\ufe0f\U0001f000-\U0001faff"

_KEPT_OR_UNSEEN = re.compile(
    "("
    # Flags of parts of countries: a black flag, then its code in tag characters. Elsewhere tags only smuggle text.
    "\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f"
    f"|(?<=[{_JOINING}])[\u200c\u200d]|[\u200c\u200d](?=[{_JOINING}])"
    f"|(?<=[{_EMOJI}])\u200d(?=[{_EMOJI}])"
    f"|(?<=[{_UNSPACED}])\u200b(?=[{_UNSPACED}])"
    "|(?<=[\u1820-\u18aa])\u180e"  # The Mongolian vowel separator shapes the letters around it.
    f")|[{_UNSEEN}]"
)


def normalise(text: str, *, form: str, unify_line_ends: bool, strip_line_ends: bool) -> str:
    """The text in one Unicode form (UAX 15). Doing it twice changes nothing more.

    Args:
        form: `nfc`, `nfd`, `nfkc` or `nfkd`.
        unify_line_ends: whether all line and page ends become line feeds.
        strip_line_ends: whether blanks before line feeds, and at the end, are dropped.
    """
    text = unicodedata.normalize(cast(Literal["NFC", "NFD", "NFKC", "NFKD"], form.upper()), text)
    if unify_line_ends:
        text = _LINE_ENDS.sub("\n", text)
    if strip_line_ends:
        text = _BLANKS_AT_LINE_ENDS.sub("", text)
    return text


def remove_controls(text: str) -> str:
    """The text without characters that nobody sees. Doing it twice changes nothing more.

    Controls that end a line or a page become line feeds, so that no words grow together; tabs stay. Zero-width joiners
    and non-joiners stay beside letters of scripts that shape by them (Persian, Hindi, ...) and between emoji.
    """
    return _KEPT_OR_UNSEEN.sub(lambda found: found[1] or "", _LINE_ENDS.sub("\n", text))


def length(text: str, *, min_characters: int, max_characters: int | None) -> str:
    """The text itself, if its length is within bounds; tags of media do not count.

    Raises:
        RowError: text_too_short or text_too_long.
    """
    num_characters = sum(len(part) for part in split_content(text) if not isinstance(part, MediaKind))
    if num_characters < min_characters:
        raise RowError(Reason.TEXT_TOO_SHORT, f"{num_characters} characters; min_characters is {min_characters}")
    if max_characters is not None and num_characters > max_characters:
        raise RowError(Reason.TEXT_TOO_LONG, f"{num_characters} characters; max_characters is {max_characters}")
    return text
