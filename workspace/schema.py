"""The tables of a workspace's database, how it is opened, and how an older one gains what is new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from probes.errors import ProbeError

SCHEMA = 2  # PRAGMA user_version; raised when the tables change: 2 has pins

metadata = sa.MetaData()
files = sa.Table(
    "files",
    metadata,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("bytes", sa.Integer, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)
benches = sa.Table(
    "benches",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("changed", sa.Float, nullable=False),
)
runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.String(24), primary_key=True),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("lane", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),  # less comes first
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("round", sa.Integer, nullable=False),  # raised by every retry: the workflow is called <id>.<round>
    sa.Column("attempts", sa.Integer, nullable=False),  # times begun in this round
    sa.Column("crashes", sa.Integer, nullable=False),  # of these, ended by the death of the child
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("queued", sa.Float, nullable=False),
    sa.Column("started", sa.Float),
    sa.Column("ended", sa.Float),
    sa.Index("runs_by_state", "state", "lane"),
    sa.Index("runs_by_time", "created"),
)
pins = sa.Table(
    "pins",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run", sa.String(24), nullable=False),
    sa.Column("figure", sa.Text, nullable=False),
    sa.Column("view", sa.Text, nullable=False),
    sa.Column("sentence", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("removed", sa.Float),
    sa.Index("pins_by_run", "run"),
)


def engine_of(path: Path) -> sa.Engine:
    engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        # A write takes the lock at its beginning and so can wait for it; reads run outside transactions.
        connection.isolation_level = "IMMEDIATE"
        for pragma in ("busy_timeout=30000", "foreign_keys=ON", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def migrate(engine: sa.Engine, root: Path) -> None:
    with engine.connect() as connection:
        found = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
        if found > SCHEMA:
            raise ProbeError(
                f"The workspace {root} was made by a newer Theodolite (its schema is {found}, this one knows "
                f"{SCHEMA}); update Theodolite or name another folder with --workspace."
            )
        if found == SCHEMA:
            return
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        for table in metadata.sorted_tables:
            connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
            for index in sorted(table.indexes, key=lambda each: str(each.name)):
                connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))
        connection.exec_driver_sql(f"PRAGMA user_version={SCHEMA}")
        connection.commit()
