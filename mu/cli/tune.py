"""``mu tune``: search a method's settings for a model and concepts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mu.cli.options import Device, named, pairs, whole_numbers
from mu.core.errors import ConfigError


def tune(
    method: Annotated[str, typer.Argument(help="The method: spm, sepce, cie, esd, ca, fmn, uce or slug.")],
    concepts: Annotated[
        list[str],
        typer.Option("--concept", "--concepts", help="A concept to tune on, or several with commas; repeat for more."),
    ],
    model: Annotated[str, typer.Option(help="The model, as for `mu erase`.")] = "canvas",
    trials: Annotated[int, typer.Option(min=1, help="Settings to try, the method's own first.")] = 20,
    evaluations: Annotated[
        int | None, typer.Option(min=1, help="The most model evaluations of all trials. Default: no limit.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of the images, comma-separated: report on others.")] = "1,2",
    suite: Annotated[str, typer.Option(help="What measures a trial: see `mu evaluate --help`.")] = "concept",
    judge: Annotated[
        list[str] | None, typer.Option(help="What looks at the images. Default: canvas for canvas, else the suite's.")
    ] = None,
    retain: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A concept that must stay.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps. Default: the suite's.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale. Default: the suite's.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Data of the suites clip and vlm.")] = None,
    preset: Annotated[str | None, typer.Option(help="Start from this preset. Default: the one for the model.")] = None,
    config: Annotated[Path | None, typer.Option(help="Start from this file of settings.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting that all trials share.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder. Default: outputs/tune-METHOD.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=0, help="Cells at once; 0: in this very process. Default: what fits.")
    ] = None,
    device: Device = None,
) -> None:
    """Search the settings that a method names, on your model and concepts. Stopped or killed, it goes on.

    Writes METHOD.yaml, which `mu erase METHOD --config` reads, and METHOD.json, which says where it comes from. A trial
    is worth the harmonic mean of the erased and the kept share. Needs the extra grid.

    Example: mu tune uce --model canvas --concepts star,moon --trials 10 --out outputs/tune-uce
    """
    from mu import algorithms
    from mu.core.concept import distinct
    from mu.core.config import read_settings
    from mu.core.program import parsed, show_log
    from mu.grid.engines import engine_of
    from mu.grid.plan import Measuring
    from mu.grid.tuning import Asked, for_tuning, tune_in

    show_log()
    if config and preset:
        raise ConfigError("--config and --preset are both given: leave one of the two out")
    chosen = algorithms.method(method)
    groups = distinct(name for text in concepts for name in named(text, "--concepts"))
    if not judge and suite == "concept" and model == "canvas":
        judge = ["canvas"]
    options: dict[str, Any] = {"judge": judge, "retain": retain, "steps": steps, "guidance": guidance, "data": data}
    given = {name: value for name, value in options.items() if value not in (None, [])}
    asked = Asked(
        chosen.name, model, tuple((each,) for each in groups),
        for_tuning(Measuring(suite, tuple(whole_numbers(seeds, "--seeds")), given)),
        read_settings(config, chosen.config_class) if config else chosen.preset_name(preset) if preset else None,
        parsed(chosen.config_class, pairs(settings or [], "--set")), trials, evaluations, seed, device or "",
    )  # fmt: skip
    with engine_of(jobs, device=device or "") as engine:
        tuned = tune_in(asked, out or Path("outputs") / f"tune-{chosen.name}", engine)
    best, first = tuned.best, tuned.trials[0]
    told = ", ".join(f"{name}={value}" for name, value in best.params.items())
    print(f"settings {tuned.settings}\norigin   {tuned.origin}\nbest     trial {best.number + 1}: {told}")
    own = "failed" if first.value is None else f"{100 * first.value:.1f} %"
    print(f"value    {100 * (best.value or 0.0):.1f} % (the method's own settings: {own})")
