"""Options made of settings, what they may be, and what the shell completes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

import pytest
import typer
from typer.testing import CliRunner

from akkordeon.cli.main import app
from akkordeon.cli.options import with_settings
from akkordeon.core.errors import RecipeError
from akkordeon.experiments.config import DownpourConfig, Settings, TrainConfig
from akkordeon.experiments.presets import OPTIMIZERS, SERVER_OPTIMIZERS, SERVER_RULES
from akkordeon.experiments.tasks.named import NAMED, NETWORKS
from akkordeon.pipeline.staleness.named import RULES


@dataclass(frozen=True)
class Baking(Settings):
    minutes: Annotated[int, typer.Option(min=1, help="In the oven.")] = 20
    crust: Annotated[Literal["thin", "thick"] | None, typer.Option(help="Of the bread.")] = None
    secret: str = "salt"


@dataclass(frozen=True)
class Eating(Settings):
    minutes: Annotated[int, typer.Option(help="At the table.")] = 5
    guests: Annotated[int, typer.Option(help="Who eat.")] = 1


def command(decorate, *arguments: str):
    """What a command of both settings, and an option of its own, is given."""
    given: list[object] = []
    toy = typer.Typer()

    @toy.command()
    @decorate
    def bake(baking: Baking, eating: Eating, loud: Annotated[bool, typer.Option("--loud")] = False) -> None:
        given.extend((baking, eating, loud))

    result = CliRunner().invoke(toy, [*arguments])
    return (result.exit_code, result.output, *given)


def test_a_setting_is_an_option_and_of_two_with_one_name_the_first():
    code, _, *given = command(with_settings(), "--minutes", "7", "--crust", "thin", "--guests", "3", "--loud")
    assert (code, given) == (0, [Baking(7, "thin"), Eating(5, 3), True])


def test_what_is_not_given_has_its_default():
    assert command(with_settings())[2:] == (Baking(), Eating(), False)


def test_a_command_may_leave_settings_out():
    for decorate in (with_settings(without=("guests",)), with_settings(only=("minutes", "crust"))):
        code, output, *_ = command(decorate, "--guests", "3")
        assert (code, "No such option" in output) == (2, True)


def test_a_setting_without_an_option_is_none_of_the_command():
    assert command(with_settings(), "--secret", "pepper")[0] == 2


@pytest.mark.parametrize("wrong", [("--minutes", "0"), ("--crust", "burnt"), ("--minutes", "long")])
def test_a_command_refuses_what_a_setting_cannot_be(wrong):
    code, output, *given = command(with_settings(), *wrong)
    assert (code, given) == (2, [])
    assert f"Invalid value for '{wrong[0]}'" in output


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"minutes": 0}, "the setting 'minutes' cannot be 0"),
        ({"minutes": "7"}, "the setting 'minutes' cannot be '7'"),
        ({"minutes": True}, "the setting 'minutes' cannot be True"),
        ({"crust": "burnt"}, "the setting 'crust' cannot be 'burnt'; there are thin, thick"),
        ({"secret": None}, "the setting 'secret' cannot be None"),
    ],
)
def test_settings_refuse_it_too(setting, sentence):
    with pytest.raises(RecipeError) as info:
        Baking(**setting)
    assert str(info.value) == sentence


# ── of the real commands ─────────────────────────────────────────────────────────────────────────────


def completed(typed: str) -> list[str]:
    """What a shell offers after this."""
    environment = {
        "_AKKORDEON_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": f"{len(typed.split(' ')) - 1}",
    }
    return CliRunner().invoke(app, [], env=environment, prog_name="akkordeon").output.split()


def test_commands_offer_what_the_tables_have():
    for command, table in (
        ("train --staleness", RULES),
        ("network start --staleness", RULES),
        ("train --optimizer", OPTIMIZERS),
        ("downpour --optimizer", OPTIMIZERS),
        ("downpour --staleness", SERVER_RULES),
        ("downpour --server-optimizer", SERVER_OPTIMIZERS),
    ):
        assert completed(f"akkordeon {command} ") == list(table), command


@pytest.mark.parametrize(
    ("words", "names"), [("train", NAMED), ("sentinel train", NAMED), ("network start", NETWORKS)]
)
def test_help_names_all_tasks(words, names):
    output = CliRunner().invoke(app, [*words.split(), "--help"], env={"COLUMNS": "300"}).output
    assert all(name in output for name in names)


def test_every_setting_of_replicas_is_an_option_of_their_command():
    for field in fields(DownpourConfig):
        option = f"--{field.name.replace('_', '-')}"
        assert option in completed(f"akkordeon downpour {option}")


def test_settings_come_back_from_a_file():
    config = TrainConfig("xor", lr=1, downpour=DownpourConfig(3, push="differences"))
    assert TrainConfig.from_plain(config.as_plain()) == config
    earlier = {"task": "xor", "epochs": None, "downpour": {"replicas": 2, "compression": None}}
    assert TrainConfig.from_plain(earlier) == TrainConfig("xor", downpour=DownpourConfig(2))


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("akkordeon dow", {"downpour"}),
        ("akkordeon train --stal", {"--staleness"}),
        ("akkordeon downpour --staleness dc", {"dc-constant", "dc-adaptive"}),
        ("akkordeon sentinel ", {"checkpoint", "train", "validate"}),
    ],
)
def test_the_shell_completes_commands_options_and_choices(typed, offered):
    assert set(completed(typed)) == offered
