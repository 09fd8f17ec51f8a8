"""What docs/store.md says of reading a store or a packed file without combo, run as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import combo

from combo.model.maskige import reference_palette
from combo.pipeline.store import SplitStore

PAGE = Path(__file__).parents[2] / "docs" / "store.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)

NO_COMBO = "import sys; sys.modules['combo'] = None\n"
SAVE = "\nimport numpy; numpy.save('label_map.npy', label_map)\n"
PALETTE = "if 'palette' in globals(): numpy.save('palette.npy', palette)\n"


@pytest.fixture(scope="module")
def home(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store and a packed file under the page's names."""
    folder = tmp_path_factory.mktemp("without")
    store = prepared.parent / "store"
    (folder / "store").symlink_to(store)
    packing = ["pack", str(store), "--to", str(folder / "s4.h5"), "--data", "s4", "-s", "train"]
    assert combo(*packing, "--manifest", prepared, "--quiet").returncode == 0
    return folder


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.split()[-1])
def test_the_pages_programs_read_what_is_there(home: Path, snippet: str) -> None:
    program = NO_COMBO + snippet + SAVE + PALETTE
    subprocess.run([sys.executable, "-c", program], cwd=home, check=True)
    split = SplitStore(home / "store", "s4", "train")
    (variant,) = split.variants("maskige")
    assert np.array_equal(
        np.load(home / "label_map.npy"), split.read_array(variant, "label_map")[0]
    )
    if "palette" in snippet:
        assert np.array_equal(np.load(home / "palette.npy"), reference_palette())


def test_the_page_has_a_program_for_each() -> None:
    assert len(SNIPPETS) == 2
    assert "zarr" in SNIPPETS[1]
