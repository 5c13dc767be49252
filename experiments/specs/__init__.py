"""One short file for each experiment of the paper; its name is the experiment's.

python -m experiments.run --experiment=NAME                  quick: seconds to minutes on a CPU
python -m experiments.run --experiment=NAME --preset=paper   the paper's full setting
"""
