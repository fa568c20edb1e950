package topology_test

import (
	"testing"

	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/gen"
)

// large is a data centre of 2,000 machines as text.
func large(b *testing.B) (*topology.Topology, []topology.File) {
	b.Helper()
	top, err := gen.Topology(gen.Config{Machines: 2000})
	if err != nil {
		b.Fatal(err)
	}
	text, err := topology.Marshal(top)
	if err != nil {
		b.Fatal(err)
	}
	return top, []topology.File{{Name: "dc.yaml", Data: text}}
}

func BenchmarkLoad2000(b *testing.B) {
	_, files := large(b)
	b.SetBytes(int64(len(files[0].Data)))
	for b.Loop() {
		if _, err := topology.Load(files); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkValidate2000(b *testing.B) {
	top, _ := large(b)
	for b.Loop() {
		if err := topology.Validate(top); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMarshal2000(b *testing.B) {
	top, _ := large(b)
	for b.Loop() {
		if _, err := topology.Marshal(top); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeJSON2000(b *testing.B) {
	top, _ := large(b)
	j, err := topology.EncodeJSON(top)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := topology.DecodeJSON(j); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDiff2000(b *testing.B) {
	top, _ := large(b)
	for b.Loop() {
		if d := topology.Diff(top, top); len(d) != 0 {
			b.Fatal(d)
		}
	}
}

// BenchmarkFits asks for every pair of 2,000 machines and their workloads.
func BenchmarkFits(b *testing.B) {
	top, _ := large(b)
	machines, workloads := top.Names(topology.KindMachine), top.Names(topology.KindWorkload)
	for b.Loop() {
		for _, w := range workloads[:40] {
			for _, m := range machines {
				top.Fits(w, m)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(40*len(machines)), "ns/pair")
}
