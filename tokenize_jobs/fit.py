"""Training of the tokenizer, a process a rank: `dnd train-tokenizer`, over nodes `infra/launch.sh train-tokenizer`.

Also by `torchrun -m tokenize_jobs.fit`, `deepspeed --module tokenize_jobs.fit` and `srun python -m tokenize_jobs.fit`.
Ends with 0 when finished, 75 when told to stop (SIGTERM, SIGUSR1, SIGINT: it saves first), 2 for what no restart mends.
"""

from __future__ import annotations

from tokenize_jobs import stopping


def main() -> None:
    """Train on this rank's share of each batch."""
    with stopping.noted():  # before torch is imported, which takes seconds
        from tokenize_jobs.launch import rank_arguments, run_rank
        from tokenize_jobs.training import fit

        run_rank(rank_arguments(__doc__).parse_args(), "tokenizer", fit)


if __name__ == "__main__":
    main()
