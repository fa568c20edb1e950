package brocadesim

import (
	"encoding/xml"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"time"
)

func (s *Switch) getEffective(call) (reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := effectiveXML{CfgName: s.db.active, Checksum: s.db.checksum(), DBMax: 4 << 20}
	if s.txn != nil {
		x.TransactionToken, x.DBTransaction = s.txn.token, 1024
	}
	for _, z := range s.db.effective {
		x.EnabledZones = append(x.EnabledZones, toXML(z))
	}
	return reply{http.StatusOK, x}, nil
}

// getDefined shows the pending edits while there are any, as FOS does.
func (s *Switch) getDefined(call) (reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.db.Defined
	if s.txn != nil {
		d = s.txn.pending
	}
	return reply{http.StatusOK, d.xml()}, nil
}

func (s *Switch) getLock(call) (reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := lockXML{}
	if left, held := s.locked(); held {
		x = lockXML{Domain: s.cfg.Domain, Token: s.txn.token, Timeout: int(s.cfg.LockTimeout / time.Second), Remaining: max(1, int(left/time.Second)),
			Role: "admin", User: s.txn.user, Address: "127.0.0.1", Interface: s.txn.via, Application: s.txn.application}
	}
	return reply{http.StatusOK, x}, nil
}

func (s *Switch) getNameServer(call) (reply, error) {
	var devices []deviceXML
	if s.cfg.Backend != nil {
		for i, l := range s.cfg.Backend.Logins() {
			devices = append(devices, deviceXML{PortID: fmt.Sprintf("0x%02x%04x", s.cfg.Domain, i), PortName: l.PortName, NodeName: l.NodeName})
		}
	}
	if len(devices) == 0 {
		return reply{}, refuse(http.StatusNotFound, "No entries in Name Server")
	}
	return reply{http.StatusOK, devices}, nil
}

// edit stages changes of the defined configuration, all of them or none.
func (s *Switch) edit(method string, c call) (reply, error) {
	var x definedXML
	if err := xml.Unmarshal(c.body, &x); err != nil {
		return reply{}, refuse(http.StatusBadRequest, "malformed: %v", err)
	}
	if fn := s.faults.takeInterference(); fn != nil {
		fn()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.txn != nil && s.txn.session != c.token {
		return reply{}, refuse(http.StatusBadRequest, "Another transaction is open, owned by %s", s.txn.user)
	}
	next := s.db.Defined.clone()
	if s.txn != nil {
		next = s.txn.pending.clone()
	}
	if err := next.apply(method, x); err != nil {
		return reply{}, err
	}
	if s.txn == nil {
		s.open(c.token, c.user, "REST", c.application)
	}
	s.txn.pending = next
	if method == http.MethodPost {
		return reply{status: http.StatusCreated}, nil
	}
	return reply{status: http.StatusNoContent}, nil
}

var zoningName = regexp.MustCompile(`^[0-9a-zA-Z_^$-]{1,64}$`)

func (d *Defined) apply(method string, x definedXML) error {
	for _, z := range x.Zones {
		if err := d.applyZone(method, z); err != nil {
			return err
		}
	}
	for _, c := range x.Cfgs {
		if !zoningName.MatchString(c.Name) {
			return refuse(http.StatusBadRequest, "invalid name %q", c.Name)
		}
		members, err := applyMembers(method, d.Cfgs[c.Name], c.Members)
		if err != nil {
			return err
		}
		if len(members) == 0 {
			delete(d.Cfgs, c.Name)
		} else {
			d.Cfgs[c.Name] = members
		}
	}
	if len(x.Aliases) > 0 {
		return refuse(http.StatusBadRequest, "aliases are read only here")
	}
	return nil
}

func (d *Defined) applyZone(method string, x zoneXML) error {
	have, exists := d.Zones[x.Name]
	next := fromXML(x)
	switch {
	case !zoningName.MatchString(x.Name):
		return refuse(http.StatusBadRequest, "invalid name %q", x.Name)
	case method != http.MethodPost && !exists:
		return refuse(http.StatusBadRequest, "zone %q does not exist", x.Name)
	case method == http.MethodDelete && len(x.Entries)+len(x.Principals) == 0:
		delete(d.Zones, x.Name)
		return nil
	case exists && method == http.MethodPost && have.Peer != next.Peer:
		return refuse(http.StatusBadRequest, "zone %q is of another type", x.Name)
	case !next.Peer && len(next.Principals) > 0:
		return refuse(http.StatusBadRequest, "zone %q is no peer zone and has principals", x.Name)
	}
	var err error
	if next.Members, err = applyMembers(method, have.Members, x.Entries); err == nil {
		next.Principals, err = applyMembers(method, have.Principals, x.Principals)
	}
	if err != nil {
		return err
	}
	if len(next.Members) == 0 || next.Peer && len(next.Principals) == 0 {
		return refuse(http.StatusBadRequest, "zone %q has too few members", x.Name)
	}
	d.Zones[x.Name] = next
	return nil
}

// applyMembers changes a list as the method says.
func applyMembers(method string, have, given []string) ([]string, error) {
	switch method {
	case http.MethodPatch:
		return slices.Clone(given), nil
	case http.MethodPost:
		out := slices.Clone(have)
		for _, m := range given {
			if !slices.Contains(out, m) {
				out = append(out, m)
			}
		}
		return out, nil
	}
	for _, m := range given {
		if !slices.Contains(have, m) {
			return nil, refuse(http.StatusBadRequest, "%q is not a member", m)
		}
	}
	if len(given) == 0 {
		return nil, nil
	}
	return slices.DeleteFunc(slices.Clone(have), func(m string) bool { return slices.Contains(given, m) }), nil
}

// patchEffective commits, or clears what is pending.
func (s *Switch) patchEffective(c call) (reply, error) {
	var x effectiveXML
	if err := xml.Unmarshal(c.body, &x); err != nil {
		return reply{}, refuse(http.StatusBadRequest, "malformed: %v", err)
	}
	switch {
	case x.CfgAction == 4:
		return s.abort(c)
	case x.CfgAction != 0 || x.CfgName == "":
		return reply{}, refuse(http.StatusBadRequest, "cfg-action %d is not available here", x.CfgAction)
	}
	s.order.Lock()
	defer s.order.Unlock()
	if err := s.commit(c, x); err != nil {
		s.count(func(c *Counters) { c.Refused++ })
		return reply{}, err
	}
	s.tell()
	if s.faults.take(func(f *Faults) *int { return &f.DropReplyAfterCommit }) {
		panic(http.ErrAbortHandler)
	}
	return reply{status: http.StatusNoContent}, nil
}

func (s *Switch) commit(c call, x effectiveXML) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.db.clone()
	switch {
	case s.txn != nil && s.txn.session != c.token:
		return refuse(http.StatusBadRequest, "Another transaction is open, owned by %s", s.txn.user)
	case x.Checksum != s.db.checksum():
		return refuse(http.StatusBadRequest, "Checksum mismatch")
	case s.txn != nil:
		next.Defined = s.txn.pending
	}
	if err := next.enable(x.CfgName); err != nil {
		return refuse(http.StatusBadRequest, "%v", err)
	}
	s.db, s.txn = next, nil
	s.counters.Commits++
	return nil
}

func (s *Switch) abort(c call) (reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.txn == nil:
		return reply{}, refuse(http.StatusBadRequest, "There is no transaction to abort")
	case s.txn.user != c.user:
		return reply{}, refuse(http.StatusBadRequest, "The transaction is owned by %s", s.txn.user)
	}
	s.txn = nil
	s.counters.Aborts++
	return reply{status: http.StatusNoContent}, nil
}
