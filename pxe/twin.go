package pxe

import (
	"encoding/hex"
	"fmt"
)

// Place is what a request says of the machine that it comes from.
type Place struct {
	// UUID is the machine's own, of option 97 (RFC 4578 section 2.3); zero when it does not say.
	UUID [16]byte
	Port string // the relay's name for its switch port (RFC 3046 section 3.1), printable; may be empty
}

func (p Place) String() string {
	id := hex.EncodeToString(p.UUID[:])
	s := fmt.Sprintf("the machine with UUID %s-%s-%s-%s-%s", id[:8], id[8:12], id[12:16], id[16:20], id[20:])
	if p.Port != "" {
		s += " at port " + p.Port
	}
	return s
}

// asker tells apart programs that may write the same UUID in different byte orders: firmware and iPXE.
type asker struct {
	mac   MAC
	class Class
}

// Twin reports whether a request comes from another machine than the first one that asked with the same
// Ethernet address since the present boot began, and who that was. A boot is given to one machine: two
// that ran the same workload would destroy its data. The port alone proves nothing: both switches of a
// pair relay what one machine sends.
func (e *Entry) Twin(m MAC, c Class, p Place) (first Place, twin bool) {
	if p.UUID == ([16]byte{}) {
		return Place{}, false
	}
	e.state.mu.Lock()
	defer e.state.mu.Unlock()
	first, known := e.state.places[asker{m, c}]
	if !known {
		if e.state.places == nil {
			e.state.places = map[asker]Place{}
		}
		e.state.places[asker{m, c}] = p
		return p, false
	}
	return first, first.UUID != p.UUID
}
