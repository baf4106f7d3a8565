"""Call one function of a solution; copied into the sandbox and run there, a process for each test.

    python3 code_driver.py solution.py NAME   < arguments as a JSON list   > result as JSON

Job: carry arguments in and the result out.
Does not know: what the result should be. Nothing in the sandbox does, so nothing in there can pass
a test but by giving the right result.
Invariants: only the standard library, for any Python from 3.10. What the solution prints goes
nowhere.
"""

import importlib.util
import json
import os
import sys


def plain(value: object) -> object:
    """Return a value as JSON knows it: tuples are lists, sets are sorted lists.

    Raises: TypeError for anything else.
    """
    if isinstance(value, set | frozenset):
        return sorted((plain(each) for each in value), key=repr)
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError("the result is a " + type(value).__name__ + ", not plain data")


def main() -> None:
    """Read arguments, call, write the result."""
    arguments = json.loads(sys.stdin.read())
    channel = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    spec = importlib.util.spec_from_file_location("solution", sys.argv[1])
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["solution"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    holder = module
    if not hasattr(module, sys.argv[2]) and hasattr(module, "Solution"):
        holder = module.Solution()
    result = json.dumps(plain(getattr(holder, sys.argv[2])(*arguments)))
    with os.fdopen(channel, "w", encoding="utf-8") as out:
        out.write(result)


if __name__ == "__main__":
    main()
