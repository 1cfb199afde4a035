"""Faults put into PTX, of which each must be found: the checker is only worth what it finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .parse import Instruction, Kernel, instruction

GRAM = "gram_tiles<float, Shape<float, 64, 2, 2>, true>"
MULTIPLY = "multiply_tiles<double, Shape<double, 32, 2, 2>, WeightedFeatures<double, Shape<double, 32, 2, 2>>, true>"
SMALL = "softmax_gram_small_tiles<Shape<float, 64, 2, 2>>"
LOGITS = "logit_tiles<RowShape<float, 128, 2, 4>>"


@dataclass(frozen=True)
class Mutation:
    """One statement of a kernel replaced by another, or by nothing."""

    kernel: str
    what: str
    number: int  # of the statement
    statement: str  # instead; empty: none

    def of(self, kernel: Kernel) -> Kernel:
        """The kernel with it."""
        code, labels = list(kernel.code), dict(kernel.labels)
        if self.statement:
            code[self.number] = instruction(self.statement)
        else:
            del code[self.number]
            labels = {name: at - (at > self.number) for name, at in labels.items()}
        return replace(kernel, code=code, labels=labels)


def _each(kernel: Kernel, opcode: str) -> list[tuple[int, Instruction]]:
    return [(i, c) for i, c in enumerate(kernel.code) if c.opcode.startswith(opcode)]


def _some(found: list, count: int) -> list:
    """The first, the last, and some between."""
    return found[:: max(1, -(-len(found) // count))]


def without(kernel: Kernel, number: int, instruction: Instruction) -> Mutation:
    """Without one statement."""
    return Mutation(kernel.name, f"without {instruction.text}, statement {number}", number, "")


def removed(kernel: Kernel, opcode: str, needless: tuple[int, ...] = (), count: int = 100) -> Iterator[Mutation]:
    """Without one of its barriers, shuffles, stores, but for those that are needless where the kernel is run."""
    found = _each(kernel, opcode)
    kept = {found[number][0] for number in needless}
    for i, c in _some([(i, c) for i, c in found if i not in kept], count):
        yield without(kernel, i, c)


def swapped(kernel: Kernel, count: int) -> Iterator[Mutation]:
    """Two registers of a fragment swapped: of A, of B, of the sums."""
    for place, (i, c) in enumerate(_some(_each(kernel, "mma"), count)):
        which = (1, 2, 0)[place % 3]
        registers = c.operands[which].strip("{}").split(",")
        registers[:2] = registers[1::-1]
        operands = list(c.operands)
        operands[which] = f"{{{', '.join(r.strip() for r in registers)}}}"
        yield Mutation(kernel.name, f"{'DAB'[which]} swapped", i, f"{c.opcode} {', '.join(operands)}")


def replaced(kernel: Kernel, text: str, other: str) -> Iterator[Mutation]:
    """The first statement with this text has another instead: a comparison that lets one more through, for one."""
    i, c = next((i, c) for i, c in enumerate(kernel.code) if text in c.text)
    yield Mutation(kernel.name, f"{other} in {c.text}", i, c.text.replace(text, other, 1))


def moved(kernel: Kernel, opcode: str, by: int) -> Iterator[Mutation]:
    """An access some bytes further on."""
    i, c = _each(kernel, opcode)[0]
    place = next(operand for operand in c.operands if operand.startswith("["))
    yield Mutation(
        kernel.name, f"{by} bytes on: {c.text}", i, c.text.replace(place, f"{place[:-1].split('+')[0]}+{by}]")
    )


def mutations(kernels: dict[str, Kernel]) -> Iterator[tuple[str, Mutation]]:
    """(name of an operation of tests/ptx/test_mutations.py, mutation)."""
    gram, multiply, logits, small = (kernels[name] for name in (GRAM, MULTIPLY, LOGITS, SMALL))
    # The first barrier of a main loop is for a block that comes back to it, as that of gram does, and so is the first
    # one of a sum; the last __syncwarp of the epilogue is for one that goes on with shared memory without a barrier.
    # Most stores of multiply are for rows that are not aligned; those of pairs are the weighted samples.
    for operation, kernel, needless, shared, store in (
        ("gram", gram, (), "st.shared", -1),
        ("multiply", multiply, (0, 2), "st.shared.v2", -1),
        ("logits", logits, (0,), "st.shared", 0),  # the last ones are for what has no bias
    ):
        for mutation in (
            *removed(kernel, "bar.sync", needless),
            *removed(kernel, "bar.warp.sync", (-1,), 2),
            *removed(kernel, shared, (), 3),
            without(kernel, *_each(kernel, "st.global")[store]),
            *swapped(kernel, 3),
        ):
            yield operation, mutation
    for mutation in (
        *removed(multiply, "cp.async.cg"),
        *removed(multiply, "cp.async.commit_group"),
        *removed(multiply, "cp.async.wait_group"),
        *replaced(multiply, "cp.async.wait_group 1", "cp.async.wait_group 2"),
    ):
        yield "multiply", mutation
    yield from (("logits", m) for m in moved(logits, "ld.global.v4", 4))
    yield from (("gram", m) for m in removed(gram, "shfl", (), 2))
    # A list of stages is made before each main loop, whose first barrier, the third one, is needless after that.
    for mutation in (*removed(small, "bar.sync", (2,)), *removed(small, "bar.warp.sync", (-1,)), *swapped(small, 6)):
        yield "small", mutation
    find = kernels["find_small_stages"]
    yield from (("small", m) for m in replaced(find, "setp.le.f32", "setp.gt.f32"))
    yield from (("residual", m) for m in replaced(kernels["label_residuals<float>"], "setp.ge.s64", "setp.gt.s64"))
    yield from (("multiply", m) for m in removed(kernels["list_samples<double>"], "bar.sync"))
    # The second one is for a block that has used the memory of a sum before.
    yield from (("softmax", m) for m in removed(kernels["softmax_rows<float>"], "bar.sync", (1,)))
