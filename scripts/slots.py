"""Issue slots of a main loop, from the machine instructions that cuobjdump prints; for registers.py.

They are counted along the shortest path through one round of the loop, a stage of 16 samples, that passes its barrier
and the widest memory access of each kind. A full tile of aligned rows takes this path, which has no branches for edges
and rare terms. An inner loop with matrix instructions counts two rounds.
"""

import heapq
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

Code = list[tuple[int, str]]  # (address, instruction)
_FUNCTION = re.compile(r"Function : (\S+)")
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,6})\*/\s+(.*?);")
_BRANCH = re.compile(r"\bBRA\b.*?(0x[0-9a-f]+)")


def cuobjdump() -> str | None:
    """Path of cuobjdump: on PATH, or in the nvidia-cuda-cuobjdump wheel, which needs nvidia-cuda-nvdisasm as well."""
    wheels = Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin/cuobjdump")
    return shutil.which("cuobjdump") or next(map(str, wheels), None)


def functions(program: str, cubin: str) -> dict[str, Code]:
    """Instructions of each kernel, by its mangled name."""
    environment = {"PATH": f"{Path(program).parent}:/usr/bin:/bin"}
    done = subprocess.run([program, "-sass", cubin], text=True, capture_output=True, check=True, env=environment)
    _, *parts = _FUNCTION.split(done.stdout)
    found = zip(parts[::2], parts[1::2], strict=True)
    return {name: [(int(at, 16), text.strip()) for at, text in _INSTRUCTION.findall(body)] for name, body in found}


def _kind(text: str) -> str:
    """The kind of an instruction: such as LDS.128 for a memory access, MMA, BAR for a barrier, or an empty text."""
    opcode = re.sub(r"^@!?U?P\w+\s+", "", text).split()[0]
    head = opcode.split(".")[0]
    if head in ("HMMA", "DMMA"):
        return "MMA"
    if head in ("LDG", "LDGSTS", "LDS", "STS") and not text.startswith("@!PT"):
        return head + ".128" * (".128" in opcode)
    return head if head == "BAR" else ""


def slots(code: Code) -> tuple[int, int] | None:
    """(issue slots, matrix instructions) of a round of the main loop, or None without a main loop."""
    at = {address: i for i, (address, _) in enumerate(code)}
    branches = (_BRANCH.search(text) for _, text in code)
    targets = [at.get(int(branch[1], 16)) if branch else None for branch in branches]
    kinds = [_kind(text) for _, text in code]
    loops = [(first, last) for last, first in enumerate(targets) if first is not None and first <= last]
    loops = [(first, last) for first, last in loops if "MMA" in kinds[first : last + 1]]
    stages = [(first, last) for first, last in loops if "BAR" in kinds[first : last + 1]]
    if not stages:
        return None
    first, last = min(stages, key=lambda loop: loop[1] - loop[0])
    rounds = [1] * len(code)
    for a, b in loops:
        if first < a and b < last:
            rounds[a : b + 1] = [2] * (b + 1 - a)

    there = {*kinds[first : last + 1]} - {""}
    needed = {kind for kind in there if f"{kind}.128" not in there}
    shortest, queue = {}, [(0, 0, first, ())]
    while queue:
        length, products, i, passed = heapq.heappop(queue)
        if (i, passed) in shortest:
            continue
        shortest[i, passed] = length
        length, products = length + rounds[i], products + rounds[i] * (kinds[i] == "MMA")
        seen = tuple(sorted({*passed, kinds[i]} & needed))
        if i == last and len(seen) == len(needed):
            return length, products
        target, text = targets[i], code[i][1]
        jumps = target is not None and i < target <= last
        stays = not re.match(r"(BRA(\.U)? 0x|EXIT|RET)", text) or (target is not None and target <= i)
        for following in [target] * jumps + [i + 1] * (stays and i < last):
            heapq.heappush(queue, (length, products, following, seen))
    return None
