import pytest
from click.testing import CliRunner

from train.__main__ import main
from train.errors import TrainError


def run(*arguments):
    return CliRunner().invoke(main, ["list", *map(str, arguments)])


def test_a_folder_is_counted_by_split_and_type(roots):
    result = run(
        "--dataset", "casia_fasd", "--root", roots("casia_fasd"), "--option", "dev_share=0"
    )
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert ["train", "bona_fide", "60"] in lines
    assert ["test", "cut_print", "90"] in lines
    assert "600 listed: 150 bona fide, 450 attacks, of 50 subjects or sources" in result.output


def test_what_is_wrong_with_a_folder_is_said(roots):
    result = run("--dataset", "siw", "--root", roots("casia_fasd"))
    assert isinstance(result.exception, TrainError)
    with pytest.raises(TrainError, match="expected the folder Test/live"):
        raise result.exception
