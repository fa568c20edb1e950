// Package driver is what a network switch family implements, and the words it uses.
package driver

import "context"

// Switch is one network switch, reached over its management protocol.
//
// Implementations MUST change exactly the ports they are given, in one transaction of the device where
// it has them, MUST keep everything else as it is, MUST refuse (fault.Stale) a setting whose epoch is
// older than the one on the port, atomically with the change, and MUST persist what they set over a
// reload of the switch (rule F4). Repeating a call is safe and changes nothing.
type Switch interface {
	// Ports reads every port, its settings and its link.
	Ports(ctx context.Context) ([]Port, error)
	// Apply converges the given ports, reads them back and returns what changed. On fault.Conflict
	// nothing was changed and the call may be repeated.
	Apply(ctx context.Context, c Change) (Result, error)
	// Close frees the session.
	Close() error
}

// Port is one switch port as the switch reports it.
type Port struct {
	Name     string    `json:"name"`
	Untagged int       `json:"untagged"`           // access or native VLAN, 0 = none
	Tagged   []int     `json:"tagged,omitempty"`   // ascending
	AllVLANs bool      `json:"allVLANs,omitempty"` // carries every VLAN, whatever Tagged says; read only
	Shut     bool      `json:"shut"`               // no frame passes: administratively down or quarantined
	Link     LinkState `json:"link"`
	Epoch    uint64    `json:"epoch"` // 0 = never set by us
	Owner    string    `json:"owner,omitempty"`
}

// LinkState is what the switch says of the port's carrier. A switch that says nothing is unknown.
type LinkState string

const (
	LinkUnknown LinkState = ""
	LinkUp      LinkState = "up"
	LinkDown    LinkState = "down"
)

// Setting is the wanted end state of one port.
type Setting struct {
	Port     string `json:"port"`
	Untagged int    `json:"untagged"`
	Tagged   []int  `json:"tagged,omitempty"`
	Shut     bool   `json:"shut"` // wins over VLANs
	Epoch    uint64 `json:"epoch"`
}

// Change is one transaction on one switch.
type Change struct {
	Owner    string    `json:"owner"` // run that asks, recorded on the device where it can be
	Settings []Setting `json:"settings"`
}

// Result says what a change did: the ports that differed before, and all asked ports as read back.
type Result struct {
	Changed []string `json:"changed,omitempty"`
	After   []Port   `json:"after"`
}
