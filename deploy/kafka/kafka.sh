#!/usr/bin/env bash
# Apache Kafka on loopback, for trying things and for tests: one broker that is its own controller (KRaft), and
# others that join it.
# No image and no tarball: the jars come from Maven Central (pom.xml beside this file pins them).
# Every broker lives in a directory of its own (settings, data, log, pid), so several run side by side.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
cache=${SLUICE_CACHE:-$repository/.cache}
version=$(sed -n 's:.*<kafka\.version>\(.*\)</kafka\.version>.*:\1:p' "$here/pom.xml")
home=$cache/kafka/$version

directory=${KAFKA_DIRECTORY:-$cache/kafka/broker}
port=${KAFKA_PORT:-9092}
owner=
join=
node=1
properties=()
listeners=()

# C1 alone, the serial collector and a class archive: ready in 2 s instead of 6, and small.
java_options=(-Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xlog:disable -Xlog:all=error:stderr)
if [ -n "${KAFKA_JAVA_OPTIONS:-}" ]; then
  read -r -a java_options <<<"$KAFKA_JAVA_OPTIONS"
fi

usage() {
  cat <<'EOF'
usage: kafka.sh COMMAND [OPTIONS]

  fetch                          put the jars into the cache (and a class archive, for quick starts)
  start                          start a broker; prints "listening on 127.0.0.1:PORT" once it answers
  stop                           stop it and wait until it has gone
  kill                           end it at once (SIGKILL), as a crash would
  status                         say whether it runs; exit code 3 if not
  create-topic NAME PARTITIONS   create a topic (also: topic NAME PARTITIONS)
  topics                         list the topics
  transactions -- ARGUMENTS      Apache Kafka's kafka-transactions.sh: list, describe-producers, find-hanging, abort...

options
  --directory DIR      the broker's directory       (default KAFKA_DIRECTORY, or .cache/kafka/broker)
  --port PORT          0 means: any that is free    (default KAFKA_PORT, or 9092; a directory started
                                                     once keeps its port)
  --property KEY=VALUE a broker property; may be given several times (start)
  --listener NAME:PORT one more listener, NAME in capitals, on a free port that is printed; its clients are told
                       to come to PORT of loopback, where a proxy stands; may be given several times (start)
  --join DIR           be a further broker of the cluster whose first one has that directory (start)
  --node ID            number of that further broker: 2, 3, ... (start, with --join)
  --owner PID          kill the broker when this process ends (start; for tests)

environment: SLUICE_CACHE (default .cache in the repository), KAFKA_JAVA_OPTIONS (replaces the JVM's options)
EOF
}

say() { echo "kafka: $*"; }
die() { echo "kafka: $*" >&2; exit 1; }

# --- jars -------------------------------------------------------------------------------------------

class_path() { printf '%s:' "$home"/lib/*.jar; }

# The archive fits one JVM and one place of the jars; any other JVM ignores it.
archive() { echo "$home/classes-$(java_version).jsa"; }
java_version() { java -version 2>&1 | sed -n 's/.*version "\([^"]*\)".*/\1/p' | head -n 1; }

fetched() { [ "$(cat "$home/stamp" 2>/dev/null)" = "$(cksum <"$here/pom.xml")" ]; }

fetch() {
  command -v java >/dev/null || die "java is missing: install a JRE of version 17 or newer (Debian: apt-get install default-jre-headless)"
  if fetched; then
    return
  fi
  mkdir -p "$cache/kafka"
  # Tests start brokers in parallel: one of them fetches, the others wait for it.
  exec 9>"$cache/kafka/lock"
  if command -v flock >/dev/null; then
    flock 9
  fi
  if ! fetched; then
    command -v mvn >/dev/null || die "mvn is missing: install Maven (Debian: apt-get install maven)"
    say "fetching Apache Kafka $version with Maven (about 45 MB, once)"
    local partial
    # What an interrupted fetch left; nobody else fetches while we hold the lock.
    rm -rf "$cache"/kafka/partial.*
    partial=$(mktemp -d "$cache/kafka/partial.XXXXXX")
    mvn -q -B -ntp -f "$here/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
      -DoutputDirectory="$partial/lib" >"$partial/maven.log" 2>&1 || {
      grep ERROR "$partial/maven.log" | head -n 5 >&2
      rm -rf "$partial"
      die "maven failed: is Maven Central within reach? Then run this again"
    }
    rm -rf "$home"
    mv "$partial" "$home"
    chmod 755 "$home"
    train || say "no class archive could be made; brokers start all the same, a second slower"
    cksum <"$here/pom.xml" >"$home/stamp"
    say "Apache Kafka $version is in $home"
  fi
  exec 9>&-
}

# Starts a broker once and has the JVM write down the classes it loaded.
train() {
  # The functions below see these instead of the ones from the command line.
  local directory port=0 owner=
  directory=$(mktemp -d "$cache/kafka/partial.XXXXXX")
  if format && launch "-XX:ArchiveClassesAtExit=$(archive)" && await && halt && [ -s "$(archive)" ]; then
    rm -rf "$directory"
  else
    rm -rf "$directory" "$(archive)"
    return 1
  fi
}

run_java() {
  local extra=()
  if [ -s "$(archive)" ]; then
    extra=("-XX:SharedArchiveFile=$(archive)")
  fi
  java "${java_options[@]}" "${extra[@]}" -Dkafka.log.level=warn -Dlog4j2.configurationFile="$here/log4j2.xml" -cp "$(class_path)" "$@"
}

# --- one broker -------------------------------------------------------------------------------------

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Below the ports that the system hands out for outgoing connections, so that none of those takes it; and none of
# those that the arguments name, which nobody listens on yet.
free_port() {
  local candidate
  for _ in $(seq 100); do
    candidate=$((20000 + (RANDOM << 15 | RANDOM) % 12000))
    if [[ " $* " != *" $candidate "* ]] && ! answers "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  die "no free port found between 20000 and 32000"
}

setting() { sed -n "s/^$1=//p" "$directory/server.properties" 2>/dev/null | tail -n 1; }
broker_port() { setting advertised.listeners | sed 's/.*://'; }

# Where the listeners beside the usual one listen, a line each: "NAME listens on 127.0.0.1:PORT".
further_listeners() {
  setting listeners | tr ',' '\n' | sed -n 's!^\([A-Z0-9]*\)://!\1 listens on !p' | grep -Ev '^(PLAINTEXT|CONTROLLER) ' || true
}

# The pid of the broker of this directory, if it runs. A pid file may outlive its process and the pid
# may have been given to another, so the command line is looked at too.
broker_pid() {
  local pid command
  pid=$(cat "$directory/kafka.pid" 2>/dev/null) || return 1
  if [ -r "/proc/$pid/cmdline" ]; then
    command=$(tr '\0' ' ' <"/proc/$pid/cmdline")
  else
    command=$(ps -p "$pid" -o command= 2>/dev/null) || return 1
  fi
  case $command in
    *"kafka.Kafka $directory/server.properties"*) echo "$pid" ;;
    *) return 1 ;;
  esac
}

# Writes the settings and formats the storage, the first time.
format() {
  mkdir -p "$directory"
  if [ -e "$directory/data/meta.properties" ]; then
    return
  fi
  if [ "$port" = 0 ]; then
    port=$(free_port)
  fi
  local controller cluster listener taken roles further='' advertised='' protocols=''
  if [ -n "$join" ]; then
    roles=broker
    controller=$(sed -n 's/^controller.quorum.voters=.*://p' "$join/server.properties")
    cluster=$(sed -n 's/^cluster.id=//p' "$join/data/meta.properties")
    if [ "$node" = 1 ] || [ -z "$cluster" ]; then
      die "--join needs the directory of the first broker, which was started, and --node 2 or another number"
    fi
  else
    roles=broker,controller
    controller=$(free_port "$port")
    further=",CONTROLLER://127.0.0.1:$controller"
    cluster=$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=')
    # An id that starts with a dash would be taken for an option.
    case $cluster in -*) cluster=k${cluster#-} ;; esac
  fi
  taken=("$port" "$controller")
  for listener in "${listeners[@]}"; do
    taken+=("$(free_port "${taken[@]}")")
    further+=",${listener%%:*}://127.0.0.1:${taken[-1]}"
    advertised+="${listener%%:*}://127.0.0.1:${listener##*:},"
    protocols+=",${listener%%:*}:PLAINTEXT"
  done
  cat >"$directory/server.properties" <<EOF
process.roles=$roles
node.id=$node
listeners=PLAINTEXT://127.0.0.1:$port$further
advertised.listeners=${advertised}PLAINTEXT://127.0.0.1:$port
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT$protocols
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
controller.quorum.voters=1@127.0.0.1:$controller
log.dirs=$directory/data
auto.create.topics.enable=false
delete.topic.enable=true

# One broker: one replica of everything, unless --property says more.
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1

# Small, and quick to react.
offsets.topic.num.partitions=8
transaction.state.log.num.partitions=8
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=16777216
log.index.size.max.bytes=1048576
# A broker that was killed may register again only when its last session is over: 9 s by default.
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.min.heartbeat.interval.ms=100
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
EOF
  local property
  for property in "${properties[@]}"; do
    echo "$property" >>"$directory/server.properties"
  done
  run_java kafka.tools.StorageTool format --cluster-id "$cluster" --config "$directory/server.properties" \
    >"$directory/format.log" 2>&1 || {
    cat "$directory/format.log" >&2
    die "the storage could not be formatted, see $directory/format.log"
  }
}

# Starts the JVM in a session of its own, so that Ctrl-C in the terminal that started it does not reach it.
launch() {
  : >"$directory/kafka.log"
  (
    # The lock on the cache, and whatever pipe our caller reads, must not stay open in the broker.
    exec 9>&- </dev/null >>"$directory/kafka.log" 2>&1
    cd "$directory"
    shared=("$@")
    if [ ${#shared[@]} = 0 ] && [ -s "$(archive)" ]; then
      shared=("-XX:SharedArchiveFile=$(archive)")
    fi
    exec setsid java "${java_options[@]}" "${shared[@]}" -Dlog4j2.configurationFile="$here/log4j2.xml" \
      -cp "$(class_path)" kafka.Kafka "$directory/server.properties"
  ) &
  echo $! >"$directory/kafka.pid"
}

await() {
  local pid deadline
  pid=$(cat "$directory/kafka.pid")
  deadline=$((SECONDS + ${KAFKA_START_SECONDS:-60}))
  until grep -q 'Kafka Server started' "$directory/kafka.log" && answers "$(broker_port)"; do
    if ! kill -0 "$pid" 2>/dev/null; then
      grep -E 'ERROR|FATAL|Exception|Error' "$directory/kafka.log" | head -n 5 >&2 || true
      rm -f "$directory/kafka.pid"
      return 1
    fi
    if [ $SECONDS -ge $deadline ]; then
      kill -KILL "$pid" 2>/dev/null || true
      rm -f "$directory/kafka.pid"
      say "the broker did not answer within ${KAFKA_START_SECONDS:-60} s" >&2
      return 1
    fi
    sleep 0.05
  done
}

# Ends the broker with the process that owns it, should that one die without stopping it.
guard() {
  local pid=$1
  (
    exec 9>&- </dev/null >/dev/null 2>&1
    # shellcheck disable=SC2016 # expanded by the inner shell
    exec setsid bash -c '
      while kill -0 "$2" 2>/dev/null; do
        kill -0 "$1" 2>/dev/null || { kill -KILL "$2" 2>/dev/null; exit; }
        sleep 0.2
      done' guard "$owner" "$pid"
  ) &
}

start() {
  local pid
  if pid=$(broker_pid); then
    say "already running (pid $pid)"
    echo "listening on 127.0.0.1:$(broker_port)"
    return
  fi
  fetch
  local fresh=no
  [ -e "$directory/data/meta.properties" ] || fresh=yes
  local wanted=$port attempt
  for attempt in 1 2 3; do
    port=$wanted
    format
    # A broker that was killed has no command line any more a moment before its sockets are closed.
    for _ in $(seq 30); do
      answers "$(broker_port)" || break
      sleep 0.1
    done
    if answers "$(broker_port)"; then
      die "port $(broker_port) is taken by another process: stop it, or choose one with --port (0: any)"
    fi
    launch
    if await; then
      pid=$(cat "$directory/kafka.pid")
      if [ -n "$owner" ]; then
        guard "$pid"
      fi
      further_listeners
      echo "listening on 127.0.0.1:$(broker_port)"
      return
    fi
    # A port that was free a moment ago may be taken by now: draw others, if we drew it.
    if [ $fresh = no ] || ! grep -q 'Address already in use' "$directory/kafka.log"; then
      break
    fi
    rm -rf "$directory/data" "$directory/server.properties"
    say "a port was taken meanwhile, trying again ($attempt)"
  done
  die "the broker could not be started, see $directory/kafka.log"
}

halt() {
  local pid signal=${1:-TERM} deadline
  if ! pid=$(broker_pid); then
    rm -f "$directory/kafka.pid"
    return
  fi
  kill "-$signal" "$pid"
  deadline=$((SECONDS + 30))
  while kill -0 "$pid" 2>/dev/null; do
    # A broker whose parent never collects it stays as a zombie: it has gone all the same.
    if [ -r "/proc/$pid/stat" ] && [ "$(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null | cut -c1)" = Z ]; then
      break
    fi
    if [ $SECONDS -ge $deadline ]; then
      say "the broker (pid $pid) did not stop within 30 s: killing it"
      kill -KILL "$pid" 2>/dev/null || true
      deadline=$((SECONDS + 30))
    fi
    sleep 0.05
  done
  rm -f "$directory/kafka.pid"
}

# One of Apache Kafka's own tools, by its class.
tool() {
  local class=$1
  shift
  broker_pid >/dev/null || die "no broker runs in $directory: start it with 'kafka.sh start'"
  fetch
  run_java "org.apache.kafka.tools.$class" --bootstrap-server "127.0.0.1:$(broker_port)" "$@"
}

# --- command line -----------------------------------------------------------------------------------

command=${1:-help}
[ $# -eq 0 ] || shift
arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    --directory | --port | --property | --listener | --owner | --join | --node)
      [ $# -ge 2 ] || die "$1 needs a value, see 'kafka.sh help'"
      case $1 in
        --directory) directory=$2 ;;
        --port) port=$2 ;;
        --property) properties+=("$2") ;;
        --listener) listeners+=("$2") ;;
        --owner) owner=$2 ;;
        --join) join=$2 ;;
        --node) node=$2 ;;
      esac
      shift 2
      ;;
    --)
      shift
      arguments+=("$@")
      break
      ;;
    -*) die "unknown option $1, see 'kafka.sh help'" ;;
    *)
      arguments+=("$1")
      shift
      ;;
  esac
done
[ -z "$join" ] || [ -e "$join/server.properties" ] || die "no broker was ever started in $join"
# Absolute, whether it exists yet or not: it is part of the broker's command line.
case $directory in /*) ;; *) directory=$PWD/$directory ;; esac

case $command in
  fetch)
    fetch
    say "jars of Apache Kafka $version: $home/lib"
    ;;
  start) start ;;
  stop)
    if pid=$(broker_pid); then
      halt
      say "stopped (pid $pid)"
    else
      say "no broker runs in $directory"
    fi
    ;;
  kill)
    if pid=$(broker_pid); then
      halt KILL
      say "killed (pid $pid)"
    else
      say "no broker runs in $directory"
    fi
    ;;
  status)
    if pid=$(broker_pid); then
      say "running (pid $pid) on 127.0.0.1:$(broker_port), log $directory/kafka.log"
    else
      say "no broker runs in $directory"
      exit 3
    fi
    ;;
  create-topic | topic)
    [ ${#arguments[@]} -eq 2 ] || die "usage: kafka.sh create-topic NAME PARTITIONS"
    tool TopicCommand --create --if-not-exists --topic "${arguments[0]}" --partitions "${arguments[1]}" \
      --replication-factor 1
    ;;
  topics) tool TopicCommand --list ;;
  transactions) tool TransactionsCommand "${arguments[@]}" ;;
  help | --help | -h) usage ;;
  *)
    usage >&2
    die "unknown command '$command'"
    ;;
esac
