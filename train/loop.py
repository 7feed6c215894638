"""Training of the transformer on code shards, a process a rank: `dnd train`, over nodes `infra/launch.sh train`.

Also by `torchrun -m train.loop`, `deepspeed --module train.loop` and `srun python -m train.loop`.
Ends with 0 when finished, 75 when told to stop (SIGTERM, SIGUSR1, SIGINT: it saves first), 2 for what no restart mends.
"""

from __future__ import annotations

from tokenize_jobs import stopping


def main() -> None:
    """Train on this rank's share of each batch."""
    with stopping.noted():  # before torch and DeepSpeed are imported, which takes seconds
        from functools import partial

        from tokenize_jobs.launch import rank_arguments, run_rank
        from train.job import fit

        parser = rank_arguments(__doc__)
        parser.add_argument("--deepspeed_config", help="JSON that adds what the spec does not own")
        arguments = parser.parse_args()
        run_rank(arguments, "transformer", partial(fit, deepspeed_config=arguments.deepspeed_config))


if __name__ == "__main__":
    main()
