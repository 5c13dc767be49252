"""Text as tokens, and an embedded synthetic text task.

Words are hashed into a fixed number of buckets, so there is no vocabulary that could be made from validation texts.
"""

import re
import zlib

import numpy as np

from sp_jax.types import Dataset

VOCABULARY = 8_192  # buckets, 0 of them padding
TOKENS = 128  # of a text; longer texts are cut
WORD = re.compile(r"[a-z0-9']+")


def tokens(text: str | bytes, length: int = TOKENS) -> np.ndarray:
    """Return the hashed words of a text (bytes: UTF-8), in lower case: [length] int32 from 1 on, 0 after its end.

    They are the same in every process and on every machine; a longer text is cut.

    >>> tokens("Not bad, not bad at all.", 8)
    array([7591, 2934, 7591, 2934, 4119, 2736,    0,    0], dtype=int32)
    """
    text = text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text
    words = WORD.findall(text.replace("<br />", " ").lower())[:length]
    found = np.zeros(length, np.int32)
    found[: len(words)] = [1 + zlib.crc32(word.encode()) % (VOCABULARY - 1) for word in words]
    return found


def reviews() -> Dataset:
    """Make 3,000 synthetic reviews of two classes, always the same, [3000, 24] int32 tokens, in place of IMDB's.

    A review has 7 to 20 words: three or five are positive or negative (of 40 words each, common and rare ones), `not`
    before such a word inverts it, the others are neutral. The label is the majority's; one in twenty is wrong.
    """
    rng = np.random.RandomState(0)  # NumPy promises that this generator's numbers stay the same
    made = [_review(rng) for _ in range(3_000)]
    labels = np.array([label for _, label in made], np.int32)
    return Dataset(np.stack([tokens(text, 24) for text, _ in made]), labels, num_classes=2, name="reviews")


def _review(rng):
    """Draw a text and its label."""
    score, words = 0, []
    for side in rng.choice([-1, 1], 3 + 2 * rng.randint(2)):  # an odd number: no ties
        negated = rng.random_sample() < 0.2
        score += -side if negated else side
        word = f"{'good' if side > 0 else 'bad'}{_rank(rng, 40)}"
        words.append(f"not {word}" if negated else word)
    words += [f"word{_rank(rng, 200)}" for _ in range(rng.randint(4, 11))]
    label = int(score > 0) if rng.random_sample() < 0.95 else int(score <= 0)
    return " ".join(rng.permutation(words)), label


def _rank(rng, count):
    """Draw a rank below `count`, low ones more often."""
    return int(count * rng.random_sample() ** 2)
