"""What the README shows is what happens."""

import doctest
import re
from pathlib import Path

BLOCKS = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), flags=re.DOTALL)


def test_the_embedding_example() -> None:
    (block,) = [block for block in BLOCKS if block.startswith(">>>")]
    example = doctest.DocTestParser().get_doctest(block, {}, "README", "README.md", None)
    assert doctest.DocTestRunner().run(example) == doctest.TestResults(failed=0, attempted=9)


def test_code_without_a_prompt_runs() -> None:
    blocks = [block for block in BLOCKS if not block.startswith(">>>")]
    assert any("evaluate(" in block for block in blocks)
    for block in blocks:
        fewer = block.replace("range(10)", "range(1)").replace("256", "8")
        exec(compile(fewer, "README.md", "exec"), {})
