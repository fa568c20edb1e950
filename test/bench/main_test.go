package main

import (
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	var all []result
	for _, line := range []string{
		"goos: linux",
		"BenchmarkDORA-2   \t  276932\t      4312 ns/op\t       0 B/op\t       0 allocs/op",
		"BenchmarkPlace/virtual-first-2 \t 3 \t 1234567890 ns/op",
		"BenchmarkStorm-2 1 12052223770 ns/op 2.573 boot-median-s 0 failed 0.8224 kill-to-topology-s 0 retransmits 33 lab-idle-cpu-%",
		"BenchmarkFleetPoll/ipmi-2 1 903000000 ns/op 3.4134 ms/last-good",
		"BenchmarkBroken-2 1 many ns/op",
		"--- BENCH: BenchmarkStorm-2",
		"ok  \trerack.dev/rerack/pxe/dhcp\t1.2s",
	} {
		if r, ok := parse(line); ok {
			r.pkg = "pxe"
			all = append(all, r)
		}
	}
	var b strings.Builder
	if err := show(&b, all); err != nil {
		t.Fatal(err)
	}
	const want = `
pxe
  DORA                 each              4.31µs
                       B/op              0
                       allocs/op         0
  Place/virtual-first  each              1.23s
  Storm                boot median       2.573 s
                       failed            0
                       kill to topology  0.8224 s
                       retransmits       0
                       lab idle cpu      33 %
  FleetPoll/ipmi       each              903ms
                       ms/last-good      3.413
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}
