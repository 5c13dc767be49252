"""The networks that a run has trained: any lane and round of it, to use, to measure again, to take elsewhere.

    from experiments import trained
    net = trained.load("runs/online-…", restart="shrink_perturb", shrink=0.6, noise_scale=0.01, seed=0, round=16)
    net.predict(inputs)  # logits; net.params, net.batch_stats and net.row say what it is

Each lies in a safetensors file of its own, `networks/<setting>/seed_0_round_16.safetensors`, which says all that is
needed to use it: other programs read it too. `--keep_networks` of experiments.run says which rounds' are kept: all of
them up to 1 GiB, beyond that those of the last round.

python -m experiments.trained --workdir=runs/online-…              what there is
python -m experiments.trained --workdir=runs/online-… --evaluate   each network again, beside its row of results.csv
"""

from collections.abc import Sequence

from absl import flags

from experiments.config import app
from experiments.config.fields import UsageError
from experiments.records import results
from experiments.records.networks import Trained, load, read, select
from experiments.reporting import summary
from sp_jax import data

__all__ = ["Trained", "load", "main", "read", "select"]

flags.adopt_module_key_flags(app)
_EVALUATE = flags.DEFINE_bool("evaluate", False, "Measure each network again (its data set must be there).")


def _table(found, evaluate):
    """Return a line for each network, as Markdown."""
    columns = [name for name in next(iter(found.values())) if name not in results.MEASURED]
    first = ("restart", "shrink", "noise_scale", "seed", "round")
    varied = [n for n in columns if n not in first and len({row[n] for row in found.values()}) > 1]
    columns = [*varied, *first]
    lines = [(*columns, "validation accuracy", *(["again"] if evaluate else []), "file")]
    datasets = {}
    for path, row in found.items():
        again = []
        if evaluate:
            net = read(path)
            name = net.settings.dataset
            datasets[name] = datasets.get(name) or data.load(name)
            again = [results.text(float(net.evaluate(datasets[name]).accuracy))]
        lines.append((*(results.text(row[n]) for n in (*columns, "validation_accuracy")), *again, path.name))
    return lines


def main(argv: Sequence[str]) -> None:
    """List the networks of a run, and measure them again."""
    with app.one_line_errors(argv):
        if not app.WORKDIR.value:
            raise UsageError("--workdir is missing: name a folder that experiments.run has written to")
        lines = _table(select(app.WORKDIR.value), _EVALUATE.value)
        print(summary.markdown(lines))
        if _EVALUATE.value:
            i = lines[0].index("again")
            same = sum(line[i] == line[i - 1] for line in lines[1:])
            print(f"\n{same} of {len(lines) - 1} as in results.csv")


if __name__ == "__main__":
    app.start(main)
