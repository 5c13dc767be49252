"""One short file for each experiment of the paper; its name is the experiment's.

python -m experiments.run --experiment=table1                  quick: seconds to minutes on a CPU
python -m experiments.run --experiment=table1 --preset=paper   the full setting of the paper
"""
