"""Run by Alembic, never imported: the caller hands in a connection whose transaction is already open and locked."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
