"""A training for torchrun: RECIPE OUT [STOP_AFTER]; with STOP_AFTER every process fails after that step, without it a begun run goes on."""

import sys
from pathlib import Path

from iclm.recipe import load_recipe
from iclm.training import run
from iclm.training.folder import Clock

recipe, out = load_recipe(sys.argv[1]), Path(sys.argv[2])
stop = int(sys.argv[3]) if len(sys.argv) > 3 else None
keep = Clock.on_save


def keep_and_stop(self, args, state, control, **kwargs):
    keep(self, args, state, control, **kwargs)
    if state.global_step == stop:
        run.wait_for_all()
        raise SystemExit(3)


Clock.on_save = keep_and_stop
run.train(recipe, out, resume=(out / "recipe.yaml").is_file(), progress_bar=False)
