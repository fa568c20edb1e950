// Package driver is what a Fibre Channel fabric or a storage array implements, and the words it uses.
//
// Both contracts are alike on purpose: a named grant, owned by us, with its whole wanted member list
// and the epoch it was planned with. Setting a grant replaces its members as a whole (set exactly these
// owners); an empty member list cuts everybody off and keeps the epoch on the device.
package driver

import "context"

// Fabric is one FC fabric, changed through one of its switches.
//
// Implementations MUST commit all zones of a change in one transaction, MUST abort it on any error,
// MUST leave zones, aliases and configurations they do not own untouched, MUST refuse (fault.Stale)
// a zone whose epoch is older than the one on the fabric, and MUST detect that somebody else committed
// in between (fault.Conflict).
type Fabric interface {
	// Zones reads the effective zones that we own.
	Zones(ctx context.Context) ([]Zone, error)
	// Apply converges the given zones, reads the effective configuration back, returns what changed.
	Apply(ctx context.Context, c ZoneChange) (ZoneResult, error)
	// Logins lists the WWPNs logged in to the fabric's name server.
	Logins(ctx context.Context) ([]string, error)
	Close() error
}

// Zone lets initiators see targets. WWPNs are lower case with colons.
type Zone struct {
	Name       string   `json:"name"` // stable name of the thing granted, without epoch: "vol-db1"
	Initiators []string `json:"initiators"`
	Targets    []string `json:"targets"`
	Epoch      uint64   `json:"epoch"`
}

// ZoneChange is one transaction on one fabric.
type ZoneChange struct {
	Owner string `json:"owner"`
	Zones []Zone `json:"zones"`
}

// ZoneResult says which zones differed before, and all asked zones as read back.
type ZoneResult struct {
	Changed []string `json:"changed,omitempty"`
	After   []Zone   `json:"after"`
}

// Array is one storage system.
//
// Implementations MUST change exactly the volumes they are given, MUST end live sessions of initiators
// that lose access before they return, MUST refuse (fault.Stale) a mask whose epoch is older than the
// one on the volume, MUST revoke before they grant, and MUST read back.
type Array interface {
	// Masks reads the masks of all volumes of the array; Epoch 0 marks one never set by us.
	Masks(ctx context.Context) ([]Mask, error)
	// Apply converges the given masks, reads back, returns what changed.
	Apply(ctx context.Context, c MaskChange) (MaskResult, error)
	// Sessions lists who is logged in now.
	Sessions(ctx context.Context) ([]Session, error)
	Close() error
}

// Mask says which initiators may reach a volume: IP addresses for iSCSI (a name ACL cannot fence an
// identity that moves), WWPNs for Fibre Channel.
type Mask struct {
	Volume     string   `json:"volume"` // the array's own name of it: the target IQN for tgt
	Initiators []string `json:"initiators"`
	Epoch      uint64   `json:"epoch"`
}

// MaskChange is one batch on one array.
type MaskChange struct {
	Owner string `json:"owner"`
	Masks []Mask `json:"masks"`
}

// MaskResult says which volumes differed before, and all asked masks as read back.
type MaskResult struct {
	Changed []string `json:"changed,omitempty"`
	After   []Mask   `json:"after"`
}

// Session is one live login of an initiator to a volume's target.
type Session struct {
	Volume    string `json:"volume"`
	Initiator string `json:"initiator"` // IP address or WWPN, as in Mask
	Name      string `json:"name"`      // initiator name (IQN) if it has one
}
