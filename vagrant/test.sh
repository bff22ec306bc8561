#!/bin/bash
# Run in a guest, as root, in the checkout: test.sh LABEL [--short | PYTEST ARGUMENT...]. Looks at the guest, then runs
# the tests that are named, or those of selection.py, or a short selection of these.
set -euo pipefail
cd "$(dirname "$0")/.."
label=$1
shift
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin NO_COLOR=1
# What every guest must be able to do; kernels.txt has what one kernel must, besides.
expect=root,python3,curl,openssl,gcc,sudo
NONO_EXPECT=$expect,$(awk -v label="$label" '$1 == label { print $5 }' vagrant/kernels.txt)
export NONO_EXPECT
export NONO_PATIENCE=${NONO_PATIENCE:-10} # emulated, everything takes ten to twenty times as long

fail() {
	echo "this guest is not what it must be: $1" >&2
	exit 1
}
[ "$(id -u)" = 0 ] || fail "not root"
[ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ] || fail "no cgroup v2 on /sys/fs/cgroup"
mountpoint -q /sys/kernel/security || mount -t securityfs securityfs /sys/kernel/security
for module in landlock bpf; do
	grep -qw "$module" /sys/kernel/security/lsm || fail "no $module in $(cat /sys/kernel/security/lsm)"
done
echo "Linux $(uname -r), $(nproc) CPUs; LSMs: $(cat /sys/kernel/security/lsm)"
case ${1-} in
"") set -- -p vagrant.selection tests/kernel tests/bypass ;;
--short) set -- tests/kernel/test_doctor.py::test_doctor_finds_everything_here tests/kernel/test_origdst.py \
	tests/bypass/test_stream_ways.py tests/bypass/test_socket_kinds.py ;;
esac
mkdir -p build/report
# Interrupted, pytest still says what failed.
timeout --signal=INT --kill-after=60 "${NONO_TESTS_S:-1200}" \
	.venv/bin/python -u -m pytest -p tests.again -q --color=no --durations=10 -m "not slow" \
	--bypass-report build/report/bypass.json "$@" || timeout 400 .venv/bin/python -u tests/again.py $?
