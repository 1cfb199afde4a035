"""PTX text as kernels: parameters, widths of registers, instructions, labels."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field

_ENTRY = re.compile(r"\.entry (\w+)\((.*?)\)\n(.*?)\{\n(.*?)\n\}", re.S)
_STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.S)
_REGISTERS = re.compile(r"\.reg \.(\w+)\s+([^;]*);")
_OPERAND = re.compile(r"(?:[^,{\[]|\{[^}]*\}|\[[^\]]*\])+")


@dataclass(frozen=True)
class Instruction:
    """One statement: `@predicate opcode operands`; `negated` for `@!predicate`."""

    opcode: str
    operands: tuple[str, ...]
    predicate: str = ""
    negated: bool = False
    text: str = ""

    @property
    def head(self) -> str:
        """`mul` of `mul.wide.s32`."""
        return self.opcode.split(".", 1)[0]

    @property
    def parts(self) -> list[str]:
        """What follows it."""
        return self.opcode.split(".")[1:]


@dataclass
class Kernel:
    """One `.entry`."""

    name: str  # without namespaces, as `short` gives it
    parameters: int  # how many
    widths: dict[str, int]  # bytes of a register, by the letters of its name; 0 for a predicate
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def width(self, register: str) -> int:
        """Bytes of a register."""
        return self.widths[register.rstrip("0123456789")]

    def loops(self) -> list[tuple[int, int]]:
        """(first, last) instruction of each loop: last branches back to first."""
        branches = ((self.labels[c.operands[0]], i) for i, c in enumerate(self.code) if c.head == "bra")
        return [(first, last) for first, last in branches if first <= last]


def short(name: str) -> str:
    """`rows<float>` of `void hessext::cuda::rows<float>(float*)`, as c++filt and compilers spell it."""
    name = re.sub(r"\(anonymous namespace\)|\{anonymous\}", "anonymous", name.lstrip("&"))
    depth = 0
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and not depth:
            name = name[:i]
            break
    return re.sub(r"\w+::|^void ", "", name).replace(" >", ">")


def kernels(text: str) -> dict[str, Kernel]:
    """All kernels of a PTX file by their names."""
    found = _ENTRY.findall(re.sub(r"//.*", "", text))
    names = subprocess.run(
        ["c++filt"], input="\n".join(name for name, *_ in found), text=True, capture_output=True, check=True
    ).stdout.splitlines()
    parsed = (_kernel(short(name), *entry) for name, entry in zip(names, found, strict=True))
    return {kernel.name: kernel for kernel in parsed}


def _kernel(name: str, mangled: str, parameters: str, directives: str, body: str) -> Kernel:
    kernel = Kernel(name, len(re.findall(rf"{mangled}_param_\d+", parameters)), {})
    for kind, names in _REGISTERS.findall(body):
        for register in names.split(","):
            letters = register.strip().split("<")[0].rstrip("0123456789")
            kernel.widths[letters] = 0 if kind == "pred" else int(kind[1:]) // 8
    body = _REGISTERS.sub("", body)
    for piece in re.split(r"[;{}]\s*\n|(?<=:)\n|;", body):
        _add(kernel, piece.strip().lstrip("{}").strip())
    return kernel


def _add(kernel: Kernel, statement: str) -> None:
    if statement.startswith("$") and statement.endswith(":"):
        kernel.labels[statement[:-1]] = len(kernel.code)
    elif statement and not statement.startswith("."):
        kernel.code.append(instruction(statement))


def instruction(statement: str) -> Instruction:
    """Of one statement without its semicolon. Parameters are named by their numbers alone."""
    statement = re.sub(r"\w+_param_(\d+)", r"param_\1", statement)
    negated, predicate, opcode, rest = _STATEMENT.fullmatch(statement).groups()
    operands = tuple(operand.strip() for operand in _OPERAND.findall(rest))
    return Instruction(opcode, operands, predicate or "", bool(negated), " ".join(statement.split()))
