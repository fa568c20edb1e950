package consul_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/hashicorp/consul/api"

	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/store/consul"
	"rerack.dev/rerack/orchestrator/store/consul/consultest"
)

// TestRestoredSnapshot takes Consul back in time under a watch.
func TestRestoredSnapshot(t *testing.T) {
	server := consultest.Start(t)
	admin := client(t, server.Address, "")
	s := open(t, consul.Config{Address: server.Address})
	ctx := bounded(t)
	put := func(ops ...store.Op) {
		t.Helper()
		if err := s.Txn(ctx, ops...); err != nil {
			t.Fatal(err)
		}
	}
	put(store.Put("a", []byte("old")), store.Put("gone", nil))
	reader, _, err := admin.Snapshot().Save(nil)
	if err != nil {
		t.Fatal(err)
	}
	snapshot, err := io.ReadAll(reader)
	reader.Close()
	if err != nil {
		t.Fatal(err)
	}
	put(store.Put("a", []byte("new")), store.Delete("gone"), store.Put("later", nil))

	batches, ended := make(chan store.Batch, 64), make(chan error, 1)
	stop := errors.New("enough")
	go func() {
		from := uint64(0)
		for { // Consul may end a blocking query over a restore, as it may over any failure
			err := s.Watch(ctx, "", from, func(b store.Batch) error {
				from = b.Revision
				batches <- b
				if content(b)["a"] == "old" {
					return stop
				}
				return nil
			})
			if err == nil || errors.Is(err, stop) {
				ended <- err
				return
			}
		}
	}()
	first := <-batches
	if c := content(first); !first.Reset || len(c) != 2 || c["a"] != "new" {
		t.Fatalf("first batch %+v, want a reset with a and later", first)
	}
	if err := admin.Snapshot().Restore(nil, bytes.NewReader(snapshot)); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, stop) {
		t.Fatalf("Watch = %v, it never saw the restored content", err)
	}
	close(batches)
	for b := range batches {
		if c := content(b); c["a"] == "old" {
			if _, ok := c["gone"]; !b.Reset || !ok || len(c) != 2 || b.Revision >= first.Revision {
				t.Errorf("batch %+v after the restore, want a reset with a and gone at an earlier revision", b)
			}
		}
	}
}

// content maps the keys of a batch to their values.
func content(b store.Batch) map[string]string {
	out := map[string]string{}
	for _, c := range b.Changes {
		if !c.Deleted {
			out[c.Key] = string(c.Value)
		}
	}
	return out
}

// TestLeavesTheRestOfConsulAlone has keys of others around the prefix.
func TestLeavesTheRestOfConsulAlone(t *testing.T) {
	server := consultest.Start(t)
	kv := client(t, server.Address, "").KV()
	others := []string{"rerack", "rerack/", "rerack/kv", "rerack/kvx", "rerack2/kv/a", "rerack/other/a", "a"}
	for _, key := range others {
		if _, err := kv.Put(&api.KVPair{Key: key, Value: []byte("theirs")}, nil); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, consul.Config{Address: server.Address})
	if err := s.Txn(bounded(t), store.Put("a", []byte("ours"))); err != nil {
		t.Fatal(err)
	}
	if entries, _, err := s.List(bounded(t), ""); err != nil || len(entries) != 1 || string(entries[0].Value) != "ours" {
		t.Errorf("List = %v, %v, want only our own", entries, err)
	}
	if err := s.Txn(bounded(t), store.Delete("a")); err != nil {
		t.Fatal(err)
	}
	for _, key := range others {
		if pair, _, err := kv.Get(key, nil); err != nil || pair == nil || string(pair.Value) != "theirs" {
			t.Errorf("%s of others is %v, %v", key, pair, err)
		}
	}
}
