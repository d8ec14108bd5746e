"""Several processes change one sqlite database; afterwards nothing may be lost, doubled or damaged.

usage: sqlite_stress.py MODE TRANSACTIONS PROCESSES DATABASE [DATABASE]

With two paths, which lead to one database by way of two mounts, every other process uses the second one.
"""

import multiprocessing
import random
import sqlite3
import sys

ACCOUNTS = 50
BALANCE = 1000
BUSY_SECONDS = 120


def connect(path):
    # Transactions begin where the code says so.
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    connection.execute("pragma synchronous = full")
    return connection


def create(path, mode):
    connection = connect(path)
    (got,) = connection.execute(f"pragma journal_mode = {mode}").fetchone()
    assert got == mode, f"sqlite chose journal mode {got} instead of {mode}"
    connection.execute("create table account (id integer primary key, balance integer not null)")
    connection.execute("create table done (writer integer, number integer, data blob, primary key (writer, number))")
    connection.executemany("insert into account values (?, ?)", [(id, BALANCE) for id in range(ACCOUNTS)])
    connection.close()


def write(path, writer, transactions):
    rng = random.Random(writer)
    connection = connect(path)
    for number in range(transactions):
        connection.execute("begin immediate")
        (total,) = connection.execute("select sum(balance) from account").fetchone()
        assert total == ACCOUNTS * BALANCE, f"writer {writer} sees a sum of {total}"
        (seen,) = connection.execute("select count(*) from done where writer = ?", (writer,)).fetchone()
        assert seen == number, f"writer {writer} sees {seen} of its own {number} transactions"
        source, target = rng.sample(range(ACCOUNTS), 2)
        amount = rng.randrange(100)
        connection.execute("update account set balance = balance - ? where id = ?", (amount, source))
        connection.execute("update account set balance = balance + ? where id = ?", (amount, target))
        data = rng.randbytes(rng.choice([10, 300, 5000, 60000]))
        connection.execute("insert into done values (?, ?, ?)", (writer, number, data))
        # Undone ones leave no trace.
        if rng.randrange(8) == 0:
            connection.execute("savepoint doubt")
            connection.execute("update account set balance = 0")
            connection.execute("rollback to doubt")
        connection.execute("commit")
    connection.close()


def check(path, processes, transactions):
    connection = connect(path)
    (integrity,) = connection.execute("pragma integrity_check").fetchone()
    assert integrity == "ok", integrity
    (total,) = connection.execute("select sum(balance) from account").fetchone()
    assert total == ACCOUNTS * BALANCE, f"the sum is {total}"
    rows = connection.execute("select writer, number, data from done order by writer, number").fetchall()
    assert len(rows) == processes * transactions, f"{len(rows)} transactions are there"
    for writer in range(processes):
        rng = random.Random(writer)
        for number in range(transactions):
            rng.sample(range(ACCOUNTS), 2)
            rng.randrange(100)
            expected = (writer, number, rng.randbytes(rng.choice([10, 300, 5000, 60000])))
            rng.randrange(8)
            assert rows[writer * transactions + number] == expected, f"{writer}, {number} has other data"
    connection.close()


def main():
    mode, transactions, processes, paths = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    create(paths[0], mode)
    work = [
        multiprocessing.Process(target=write, args=(paths[writer % len(paths)], writer, transactions))
        for writer in range(processes)
    ]
    for process in work:
        process.start()
    for process in work:
        process.join()
    assert all(process.exitcode == 0 for process in work), "a writer failed"
    for path in paths:
        check(path, processes, transactions)


if __name__ == "__main__":
    main()
