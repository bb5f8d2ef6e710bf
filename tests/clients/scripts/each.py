"""Runs a script for each line of the input, every time in a process of its own.

What the script imports is imported once, before it forks: that takes longer than all the rest.

Usage: each.py SCRIPT; a line is {"arguments": […], "environment": {…}}, and the answer is
{"status": …, "out": …, "err": …}.
"""

import ast
import json
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path


def imports(script):
    """Do what the script's first lines do."""
    found = ast.parse(script.read_text())
    found.body = [one for one in found.body if isinstance(one, ast.Import | ast.ImportFrom)]
    exec(compile(found, script, "exec"), {})


def run(script, arguments, environment, out, err):
    """Be the script until its end."""
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    os.environ.update(environment)
    sys.argv = [str(script), *arguments]
    status = 1
    try:
        runpy.run_path(str(script), run_name="__main__")
        status = 0
    except BaseException:  # noqa: BLE001  # also what it exits with
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main():
    script = Path(sys.argv[1])
    imports(script)
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = os.fork()
            if child == 0:
                run(script, **json.loads(line), out=out, err=err)
            answer = {"status": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}
            for name, file in (("out", out), ("err", err)):
                file.seek(0)
                answer[name] = file.read()
        print(json.dumps(answer), flush=True)


main()
