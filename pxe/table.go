package pxe

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"rerack.dev/rerack/internal/fault"
)

// Table is the boot plane's read-only picture of who shall boot what: by Ethernet address, and by
// token. Reads take no lock. Its owner keeps it current from the store with Set, Remove and Replace.
type Table struct {
	key []byte

	mu       sync.Mutex // serialises writers
	machines map[string]*Entry
	floor    map[string]uint64 // highest epoch ever seen of a machine, kept after it is removed

	macs   *cow[MAC, *Entry]
	tokens *cow[TokenHash, *Entry]
}

// Entry is one intent in the table with what the boot plane remembers of it.
type Entry struct {
	Intent Intent
	token  Token
	text   string // the token's, for URLs
	state  *state
}

// state outlives an update of an intent as long as machine, run and epoch stay the same.
type state struct {
	reported atomic.Uint32          // bits of milestones already reported
	nonce    atomic.Pointer[string] // of the phone-home that consumed the token
}

// NewTable makes an empty table. The key signs boot tokens; it has at least 32 bytes, and every boot
// server of an installation has the same one.
func NewTable(key []byte) (*Table, error) {
	if len(key) < minKey {
		return nil, fault.Newf(fault.Invalid, "boot token key has %d bytes: want at least %d random ones", len(key), minKey)
	}
	return &Table{key: slices.Clone(key), machines: map[string]*Entry{}, floor: map[string]uint64{},
		macs: newCow[MAC, *Entry](), tokens: newCow[TokenHash, *Entry]()}, nil
}

// Set puts in the intent of one machine in place of the one it had. It returns fault.Invalid for a
// malformed one, fault.Stale for an epoch lower than the machine has had, and fault.Conflict for an
// Ethernet address that another machine holds with the same or a higher epoch; a higher epoch takes
// the address over, as a workload's identity moves.
func (t *Table) Set(in Intent) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.set(in)
}

func (t *Table) set(in Intent) error {
	if err := in.Validate(); err != nil {
		return err
	}
	if f := t.floor[in.Machine]; in.Epoch < f {
		return &fault.Error{Kind: fault.Stale, Where: "machine " + in.Machine, What: "set boot intent",
			Evidence: "an intent of a higher epoch was here"}
	}
	tok := NewToken(t.key, in.Machine, in.Run, in.Epoch)
	if in.TokenHash != (TokenHash{}) && in.TokenHash != tok.Hash() {
		return &fault.Error{Kind: fault.Invalid, Where: "machine " + in.Machine, What: "set boot intent",
			Evidence: "its token was made with another key", Next: "give every boot server the same key"}
	}
	in.TokenHash = tok.Hash()
	for _, n := range in.NICs {
		if o, ok := t.macs.get(n.MAC); ok && o.Intent.Machine != in.Machine && o.Intent.Epoch >= in.Epoch {
			return &fault.Error{Kind: fault.Conflict, Where: "machine " + in.Machine, What: "set boot intent",
				Evidence: n.MAC.String() + " belongs to " + o.Intent.Machine}
		}
	}
	e := &Entry{Intent: in, token: tok, text: tok.Reveal(), state: &state{}}
	old := t.machines[in.Machine]
	if old != nil && old.Intent.TokenHash == in.TokenHash {
		e.state = old.state
	}
	if in.Nonce != "" {
		e.state.nonce.CompareAndSwap(nil, &in.Nonce)
	}
	t.machines[in.Machine], t.floor[in.Machine] = e, in.Epoch
	for _, n := range in.NICs {
		t.macs.set(n.MAC, e)
	}
	if in.Boot != nil {
		t.tokens.set(in.TokenHash, e)
	}
	if old != nil {
		t.forget(old, e)
	}
	return nil
}

// forget takes out what old had and next (which may be nil) has not.
func (t *Table) forget(old, next *Entry) {
	for _, n := range old.Intent.NICs {
		if e, _ := t.macs.get(n.MAC); e == old {
			t.macs.del(n.MAC)
		}
	}
	if next == nil || next.Intent.Boot == nil || next.Intent.TokenHash != old.Intent.TokenHash {
		t.tokens.del(old.Intent.TokenHash)
	}
}

// Remove takes out the intent of a machine unless it has a higher epoch than given; an absent one is
// success. The machine's highest epoch is remembered: a late Set of an older intent stays refused.
func (t *Table) Remove(machine string, epoch uint64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.machines[machine]
	if e == nil {
		return nil
	}
	if e.Intent.Epoch > epoch {
		return &fault.Error{Kind: fault.Stale, Where: "machine " + machine, What: "remove boot intent",
			Evidence: "an intent of a higher epoch is here"}
	}
	t.forget(e, nil)
	delete(t.machines, machine)
	return nil
}

// Replace makes the table hold exactly these intents, as after reading the whole store. An intent
// that Set would refuse is refused here too, and the machine keeps what it had; the others are taken.
func (t *Table) Replace(ins []Intent) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	keep := make(map[string]bool, len(ins))
	for _, in := range ins {
		keep[in.Machine] = true
	}
	for name, e := range t.machines {
		if !keep[name] {
			t.forget(e, nil)
			delete(t.machines, name)
		}
	}
	// An address may go from one machine of the list to another: who finds it taken tries again when
	// the others have let go.
	var again []Intent
	var errs []error
	for _, in := range ins {
		if err := t.set(in); fault.Is(err, fault.Conflict) {
			again = append(again, in)
		} else if err != nil {
			errs = append(errs, err)
		}
	}
	for _, in := range again {
		if err := t.set(in); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Lookup finds the entry that holds an Ethernet address.
func (t *Table) Lookup(m MAC) (*Entry, bool) { return t.macs.get(m) }

// ByToken finds the entry a token belongs to. Expired and consumed ones are found: the caller decides.
func (t *Table) ByToken(tok Token) (*Entry, bool) { return t.tokens.get(tok.Hash()) }

// Len is the number of machines in the table.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.machines)
}

// Token is the entry's boot token.
func (e *Entry) Token() Token { return e.token }

// Nonce returns the nonce of the phone-home that consumed the token, or "" while it is unused.
func (e *Entry) Nonce() string {
	if p := e.state.nonce.Load(); p != nil {
		return *p
	}
	return ""
}

// Consume remembers in memory that the durable sink accepted a phone-home with this nonce.
func (e *Entry) Consume(nonce string) { e.state.nonce.CompareAndSwap(nil, &nonce) }

// Owns reports whether an address is one of the machine's.
func (e *Entry) Owns(a netip.Addr) bool {
	return slices.ContainsFunc(e.Intent.NICs, func(n NIC) bool { return n.Address.Addr() == a })
}

// NIC returns the NIC with the address m.
func (e *Entry) NIC(m MAC) (NIC, bool) {
	for _, n := range e.Intent.NICs {
		if n.MAC == m {
			return n, true
		}
	}
	return NIC{}, false
}
