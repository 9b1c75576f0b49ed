import sys

import sqlalchemy as sa
from sqlalchemy import orm

from common import *

DRIVER = sys.argv[1]
ME = "sqlalchemy-" + DRIVER


class Base(orm.DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    customer: orm.Mapped[str]


class Note(Base):
    __tablename__ = "notes"
    client: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    n: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    body: orm.Mapped[str]


class Secret(Base):
    __tablename__ = "secrets"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    value: orm.Mapped[str]


engine = sa.create_engine(sa.URL.create("postgresql+" + DRIVER, USER, PASSWORD, HOST, PORT, DATABASE), pool_pre_ping=True)
with orm.Session(engine) as s:
    say("select", [(o.id, o.customer) for o in s.scalars(sa.select(Order).order_by(Order.id).limit(3))])
    s.execute(sa.delete(Note).where(Note.client == ME))
    s.commit()
    s.add_all([Note(client=ME, n=n, body=f"body {n}") for n in range(20)])
    s.commit()
    s.add(Note(client=ME, n=99, body="lost"))
    s.flush()
    s.rollback()
    note = s.scalars(sa.select(Note).where(Note.client == ME, Note.n == 1)).one()
    note.body = "changed"
    s.commit()
    say("transaction", s.execute(sa.select(Note.n, Note.body).where(Note.client == ME).order_by(Note.n).limit(3)).all())
    s.commit()
    try:
        s.scalars(sa.select(Secret)).all()
    except sa.exc.DBAPIError as e:
        say("refused", type(e).__name__, one_line(e.orig))
    s.rollback()
    say("after", s.scalar(sa.select(sa.func.count()).select_from(Order)))
    s.commit()
    with s.begin_nested():
        say("savepoint", s.scalar(sa.select(sa.func.count()).select_from(Order)))
    try:
        s.execute(sa.text("SELECT 1/0"))
    except sa.exc.DBAPIError as e:
        say("division", type(e).__name__)
    s.rollback()
inspector = sa.inspect(engine)
say("tables", sorted(inspector.get_table_names()))
say("columns", [(c["name"], str(c["type"])) for c in inspector.get_columns("orders")])
say("primary key", inspector.get_pk_constraint("orders")["constrained_columns"])
