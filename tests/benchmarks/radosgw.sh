#!/usr/bin/env bash
# A signed S3 server on loopback: Ceph's monitor, an object store in memory, and its RADOS gateway.
#   apt-get install -y --no-install-recommends ceph-mon ceph-osd radosgw uuid-runtime
#   tests/benchmarks/radosgw.sh DIR PORT MON_PORT
# DIR must be empty. Keys: "bench" and "bench-secret"; addresses are http://127.0.0.1:PORT/bucket/key.
# Prints "ready" and serves until it is ended or its parent dies; all daemons die with it.
set -euo pipefail
dir=$(realpath "$1") port=$2 mon_port=$3
mkdir -p "$dir"/{mon,osd,run,log}
cd "$dir"
export CEPH_CONF=$dir/ceph.conf

cat >ceph.conf <<CONF
[global]
fsid = $(uuidgen)
mon host = v2:127.0.0.1:$mon_port
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = $dir/keyring
run dir = $dir/run
crash dir = $dir/run
log file = $dir/log/\$name.log
admin socket = $dir/run/\$name.asok
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000
mon data avail warn = 2
mon data avail crit = 1
[mon]
mon data = $dir/mon
mon cluster log file = $dir/log/cluster.log
[osd]
osd data = $dir/osd
osd objectstore = memstore
memstore device bytes = 12884901888
memstore page set = false
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:$port tcp_nodelay=1
rgw dns name = 127.0.0.1
rgw thread pool size = 64
rgw enable usage log = false
rgw enable ops log = false
CONF

serve() { setpriv --pdeathsig KILL "$@" </dev/null >>log/out 2>&1 & }
trap 'kill -KILL $(jobs -p) 2>/dev/null' EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

all=(--cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *')
{
	ceph-authtool --create-keyring keyring --gen-key -n mon. --cap mon 'allow *'
	for name in client.admin client.rgw.a osd.0; do
		ceph-authtool keyring --gen-key -n $name "${all[@]}"
	done
	monmaptool --create --fsid "$(sed -n 's/^fsid = //p' ceph.conf)" --addv a "[v2:127.0.0.1:$mon_port]" monmap
	ceph-mon -i a --mkfs --keyring keyring --monmap monmap
	serve ceph-mon -f -i a
	osd=$(uuidgen)
	timeout 60 ceph osd new "$osd" 0
	timeout 60 ceph auth import -i keyring
	ceph-osd -i 0 --mkfs --osd-uuid "$osd"
	serve ceph-osd -f -i 0
	serve radosgw -f -n client.rgw.a
	for _ in $(seq 240); do
		curl -s -o /dev/null "http://127.0.0.1:$port/" && break
		sleep 0.25
	done
	timeout 60 radosgw-admin user create --uid=bench --display-name=bench --access-key=bench --secret=bench-secret
} >>log/setup 2>&1
echo ready
wait
