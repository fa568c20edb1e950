package embedded_test

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"testing"

	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/store/embedded"
)

var record = bytes.Repeat([]byte("r"), 512) // about the size of a machine's record

func BenchmarkTxnSequential(b *testing.B) {
	s := open(b, embedded.Config{})
	for i := 0; b.Loop(); i++ {
		if err := s.Txn(background, store.Put(fmt.Sprintf("machine/%05d", i%10000), record)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTxn64Concurrent(b *testing.B) {
	s := open(b, embedded.Config{})
	var next atomic.Int64
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := s.Txn(background, store.Put(fmt.Sprintf("machine/%05d", next.Add(1)%10000), record)); err != nil {
				b.Error(err)
			}
		}
	})
}

func BenchmarkList10000(b *testing.B) {
	s := open(b, embedded.Config{})
	for i := 0; i < 10000; i += 50 {
		var ops []store.Op
		for j := range 50 {
			ops = append(ops, store.Put(fmt.Sprintf("machine/%05d", i+j), record))
		}
		if err := s.Txn(background, ops...); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if entries, _, err := s.List(background, "machine/"); err != nil || len(entries) != 10000 {
			b.Fatal(len(entries), err)
		}
	}
}
