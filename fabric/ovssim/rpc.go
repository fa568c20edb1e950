package ovssim

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/cenkalti/rpc2"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"
)

// maxOperations bounds one transaction.
const maxOperations = 10_000

// serve registers the methods of RFC 7047 section 4.1.
func (s *Switch) serve() {
	s.rpc.Handle("list_dbs", func(_ *rpc2.Client, _ []any, reply *[]string) error {
		*reply = []string{s.schema.Name}
		return nil
	})
	s.rpc.Handle("get_schema", func(_ *rpc2.Client, args []any, reply *json.RawMessage) error {
		if len(args) != 1 || args[0] != s.schema.Name {
			return errors.New("unknown database")
		}
		*reply = schemaJSON
		return nil
	})
	s.rpc.Handle("echo", func(_ *rpc2.Client, args []any, reply *[]any) error {
		*reply = append([]any{}, args...)
		return nil
	})
	s.rpc.Handle("transact", s.transact)
}

func (s *Switch) transact(client *rpc2.Client, args []json.RawMessage, reply *[]*result) (err error) {
	// libovsdb's decoders trust their input.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("malformed request: %v", p)
		}
	}()
	ops, err := s.decode(args)
	if err != nil {
		return err
	}
	if !s.faults.stall(client.DisconnectNotify()) {
		return errors.New("connection lost")
	}
	if slices.ContainsFunc(ops, isWrite) {
		if fn := s.faults.takeInterference(); fn != nil {
			fn()
		}
	}
	how := s.faults.next()
	switch how {
	case Refused:
		s.count(func(c *Counters) { c.Transactions++; c.Failed++ })
		*reply = []*result{{Error: "resources exhausted", Details: "told to refuse"}}
		return nil
	case Dropped:
		s.count(func(c *Counters) { c.Transactions++; c.Failed++ })
		client.Close()
		return errors.New("dropped")
	}
	*reply = s.execute(ops)
	if how == LostTail {
		client.Close()
		return errors.New("reply lost")
	}
	return nil
}

func (s *Switch) decode(args []json.RawMessage) ([]ovsdb.Operation, error) {
	var name string
	if len(args) == 0 || json.Unmarshal(args[0], &name) != nil || name != s.schema.Name {
		return nil, errors.New("unknown database")
	}
	if len(args) > maxOperations {
		return nil, errors.New("too many operations")
	}
	ops := make([]ovsdb.Operation, 0, len(args)-1)
	for _, raw := range args[1:] {
		var op ovsdb.Operation
		if err := json.Unmarshal(raw, &op); err != nil {
			return nil, err
		}
		ops = append(ops, op)
	}
	return ops, nil
}

// execute runs one transaction, commits it if nothing failed, and lets the daemon act on it.
func (s *Switch) execute(ops []ovsdb.Operation) []*result {
	if slices.ContainsFunc(ops, isWrite) {
		s.order.Lock()
		defer s.order.Unlock()
	}
	s.mu.Lock()
	t := &txn{schema: &s.schema, base: s.db, written: tables{}}
	results, ok := t.run(ops)
	s.counters.Transactions++
	if !ok {
		s.counters.Failed++
	} else if len(t.written) > 0 {
		s.counters.Commits++
		for name, rows := range t.written {
			s.db[name] = rows
		}
	}
	s.mu.Unlock()
	if ok && len(t.written) > 0 {
		s.act()
	}
	return results
}

func (s *Switch) count(fn func(*Counters)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn(&s.counters)
}
