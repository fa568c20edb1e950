package brocade

import (
	"fmt"
	"slices"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/driver"
)

// zoneDB is the fabric's zoning as it was read: what is in force, and what is stored.
type zoneDB struct {
	cfg      string // name of the configuration in force, "" = none
	checksum string
	token    uint32 // of an open transaction at this switch
	enabled  []deviceZone
	zones    []deviceZone // defined
	members  []string     // names of the zones in cfg
}

// edit is what one transaction does. Its steps are sent in the order of the fields, so that at no point
// the configuration is empty or names a zone that is missing for good.
type edit struct {
	replace []deviceZone // deleted first, to be created again under the same name
	create  []deviceZone
	join    []string // zones that cfg gets
	leave   []string // zones that cfg loses
	remove  []deviceZone
	changed []string
}

// onDevice is how a zone is stored: a peer zone, in which initiators see the targets, which are its
// principals, and not each other. Without initiators it is a zone with the targets alone, because a peer
// zone must have members that are not principals (member-entry/entry-name has min-elements 1): nobody
// gets in, and the epoch stays on the fabric.
func onDevice(z driver.Zone) deviceZone {
	name := ZoneName(z.Name, z.Epoch)
	if len(z.Initiators) == 0 {
		return deviceZone{Name: name, Type: typeZone, Members: &members{Entries: canonical(z.Targets)}}
	}
	return deviceZone{Name: name, Type: typePeer, Members: &members{Entries: canonical(z.Initiators), Principals: canonical(z.Targets)}}
}

// fromDevice is the inverse, for a zone of ours.
func fromDevice(d deviceZone) (driver.Zone, bool) {
	name, epoch, ok := ParseZoneName(d.Name)
	z := driver.Zone{Name: name, Epoch: epoch, Initiators: []string{}, Targets: canonical(d.entries())}
	if d.peer() {
		z.Initiators, z.Targets = canonical(d.entries()), canonical(d.principals())
	}
	return z, ok
}

// plan works out what has to change for the wanted zones. A stale one spoils all.
func (db *zoneDB) plan(want []driver.Zone) (edit, error) {
	var e edit
	seen := map[string]bool{}
	for _, z := range want {
		key := Key(z.Name)
		if seen[key] {
			return edit{}, fault.Newf(fault.Invalid, "zone %s is set twice in one change", z.Name)
		}
		seen[key] = true
		if newest := db.newest(key); newest > z.Epoch {
			return edit{}, &fault.Error{Kind: fault.Stale, What: "set zone " + z.Name,
				Evidence: fmt.Sprintf("planned with epoch %d, the fabric has %d", z.Epoch, newest)}
		}
		if db.settled(z) {
			continue
		}
		e.changed = append(e.changed, z.Name)
		e.set(db, key, onDevice(z))
	}
	slices.Sort(e.changed)
	return e, nil
}

func (e *edit) set(db *zoneDB, key string, next deviceZone) {
	exists := false
	for _, d := range db.zones {
		switch {
		case d.Name == next.Name && d.same(next):
			exists = true
		case d.Name == next.Name:
			e.replace = append(e.replace, deviceZone{Name: d.Name})
		case keyOf(d.Name) == key:
			e.remove = append(e.remove, deviceZone{Name: d.Name})
		}
	}
	if !exists {
		e.create = append(e.create, next)
	}
	joined := false
	for _, m := range db.members {
		switch {
		case m == next.Name:
			joined = true
		case keyOf(m) == key:
			e.leave = append(e.leave, m)
		}
	}
	if !joined {
		e.join = append(e.join, next.Name)
	}
}

// keyOf is the Key in the name of a zone of ours, "" for others.
func keyOf(device string) string {
	name, _, ok := ParseZoneName(device)
	if !ok {
		return ""
	}
	return Key(name)
}

// newest is the highest epoch of a zone anywhere: in force, stored, or only named by the configuration.
func (db *zoneDB) newest(key string) uint64 {
	var newest uint64
	see := func(device string) {
		if _, epoch, ok := ParseZoneName(device); ok && keyOf(device) == key {
			newest = max(newest, epoch)
		}
	}
	for _, d := range slices.Concat(db.enabled, db.zones) {
		see(d.Name)
	}
	for _, m := range db.members {
		see(m)
	}
	return newest
}

// settled says whether a zone is in force and stored exactly as wanted, and in no other epoch.
func (db *zoneDB) settled(z driver.Zone) bool {
	want, key := ZoneName(z.Name, z.Epoch), Key(z.Name)
	others := slices.ContainsFunc(db.members, func(m string) bool { return m != want && keyOf(m) == key })
	return db.inForce(z) && only(db.zones, z) && slices.Contains(db.members, want) && !others
}

// inForce says whether a zone is in force exactly as wanted, and in no other epoch.
func (db *zoneDB) inForce(z driver.Zone) bool { return only(db.enabled, z) }

func only(zones []deviceZone, z driver.Zone) bool {
	want, key := onDevice(z), Key(z.Name)
	n, right := 0, 0
	for _, d := range zones {
		if keyOf(d.Name) != key {
			continue
		}
		n++
		if d.Name == want.Name && d.same(want) {
			right++
		}
	}
	return n == 1 && right == 1
}

// satisfies says whether all wanted zones are in force.
func (db *zoneDB) satisfies(want []driver.Zone) bool {
	return !slices.ContainsFunc(want, func(z driver.Zone) bool { return !db.inForce(z) })
}
