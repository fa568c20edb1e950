package tgtsim

import (
	"slices"
	"strings"

	"rerack.dev/rerack/sanzoning/iscsi"
	"rerack.dev/rerack/sanzoning/tgt/tgtadm"
)

// target is one target of the configuration.
type target struct {
	tid       int32
	name      string
	offline   bool
	addresses []string
	names     []string
	accounts  []string
	units     map[uint16]*disk
}

func newTarget(tid int32, name string) *target {
	return &target{tid: tid, name: name, units: map[uint16]*disk{}}
}

func (t *target) rules() []string { return slices.Concat(t.addresses, t.names) }

func (s *Sim) byName(name string) *target {
	for _, t := range s.targets {
		if t.name == name {
			return t
		}
	}
	return nil
}

// param reads "key=value" at wherever it stands; the value goes to the end, as mgmt.c of tgt has it.
func param(params, key string) (string, bool) {
	_, v, ok := strings.Cut(params, key+"=")
	return v, ok
}

// execute runs one management request, as the single thread of tgtd does.
func (s *Sim) execute(req tgtadm.Request) (tgtadm.Code, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if req.Op != tgtadm.Show {
		s.counters["change"]++
		if s.faults.Forget > 0 {
			s.faults.Forget--
			return tgtadm.Success, ""
		}
	}
	switch req.Mode {
	case tgtadm.System:
		if req.Op == tgtadm.Show {
			return tgtadm.Success, "System:\n    State: ready\n    debug: off\nLLDs:\n    iscsi: ready\n"
		}
	case tgtadm.LLD:
		if req.Op == tgtadm.Show {
			return tgtadm.Success, s.showDrivers()
		}
	case tgtadm.Portal:
		if req.Op == tgtadm.Show {
			return tgtadm.Success, "Portal: " + s.Portal() + ",1\n"
		}
	case tgtadm.AccountMode:
		return s.account(req)
	case tgtadm.Target:
		return s.target(req)
	case tgtadm.Device:
		return s.device(req), ""
	case tgtadm.Connection:
		return s.connection(req)
	}
	return tgtadm.InvalidRequest, ""
}

func (s *Sim) target(req tgtadm.Request) (tgtadm.Code, string) {
	if req.Op == tgtadm.Show && req.TID < 0 {
		return tgtadm.Success, s.showTargets()
	}
	t := s.targets[req.TID]
	if req.Op == tgtadm.New {
		name, _ := param(req.Params, "targetname")
		switch {
		case t != nil || s.byName(name) != nil:
			return tgtadm.TargetExists, ""
		case iscsi.CheckName(name) != nil || req.TID < 1:
			return tgtadm.InvalidRequest, ""
		}
		s.targets[req.TID] = newTarget(req.TID, name)
		s.cfg.Backend.Rules(name, nil)
		return tgtadm.Success, ""
	}
	if t == nil {
		return tgtadm.NoTarget, ""
	}
	switch req.Op {
	case tgtadm.Delete:
		live := s.sessionsOf(t)
		if len(live) > 0 && !req.Force {
			return tgtadm.TargetActive, ""
		}
		for _, n := range live {
			s.iscsi.End(n.TSIH)
		}
		delete(s.targets, t.tid)
		s.cfg.Backend.Rules(t.name, nil)
		return tgtadm.Success, ""
	case tgtadm.Bind, tgtadm.Unbind:
		return s.bind(t, req), ""
	case tgtadm.Update:
		state, ok := param(req.Params, "state")
		if !ok || (state != "ready" && state != "offline") {
			return tgtadm.InvalidRequest, ""
		}
		t.offline = state == "offline"
		return tgtadm.Success, ""
	case tgtadm.Show:
		return tgtadm.Success, "MaxRecvDataSegmentLength=262144\nInitialR2T=Yes\nImmediateData=Yes\n"
	}
	return tgtadm.InvalidRequest, ""
}

// bind adds or removes an access rule. It does not touch any session.
func (s *Sim) bind(t *target, req tgtadm.Request) tgtadm.Code {
	list := &t.addresses
	rule, ok := param(req.Params, "initiator-address")
	if !ok {
		list = &t.names
		if rule, ok = param(req.Params, "initiator-name"); !ok {
			return tgtadm.InvalidRequest
		}
	}
	at := slices.Index(*list, rule)
	switch {
	case req.Op == tgtadm.Bind && at >= 0:
		return tgtadm.RuleExists
	case req.Op == tgtadm.Unbind && at < 0:
		return tgtadm.NoRule
	case req.Op == tgtadm.Bind:
		*list = append(*list, rule)
	default:
		*list = slices.Delete(*list, at, at+1)
	}
	s.cfg.Backend.Rules(t.name, t.rules())
	return tgtadm.Success
}

// device makes disks of 64 MiB in memory: the path is only their name.
func (s *Sim) device(req tgtadm.Request) tgtadm.Code {
	t := s.targets[req.TID]
	if t == nil {
		return tgtadm.NoTarget
	}
	lun := uint16(req.LUN)
	_, there := t.units[lun]
	switch req.Op {
	case tgtadm.New:
		path, ok := param(req.Params, "path")
		path, _, _ = strings.Cut(path, ",")
		switch {
		case there || lun == 0:
			return tgtadm.LUNExists
		case !ok || path == "" || req.LUN > 0x3fff:
			return tgtadm.InvalidRequest
		}
		d := s.disk(path, 64<<20)
		d.setVolume(t.name)
		t.units[lun] = d
	case tgtadm.Delete:
		if !there {
			return tgtadm.NoLUN
		}
		delete(t.units, lun)
	default:
		return tgtadm.UnsupportedAction
	}
	return tgtadm.Success
}

func (s *Sim) connection(req tgtadm.Request) (tgtadm.Code, string) {
	t := s.targets[req.TID]
	if t == nil {
		return tgtadm.NoTarget, ""
	}
	switch req.Op {
	case tgtadm.Show:
		return tgtadm.Success, s.showConnections(t)
	case tgtadm.Delete:
		for _, n := range s.sessionsOf(t) {
			if uint64(n.TSIH) != req.SID {
				continue
			}
			if uint32(n.CID) != req.CID {
				return tgtadm.NoConnection, ""
			}
			if !s.faults.KeepSessions {
				s.iscsi.End(n.TSIH)
			}
			return tgtadm.Success, ""
		}
		return tgtadm.NoSession, ""
	}
	return tgtadm.InvalidRequest, ""
}

func (s *Sim) account(req tgtadm.Request) (tgtadm.Code, string) {
	if req.Op == tgtadm.Show {
		return tgtadm.Success, s.showAccounts()
	}
	user, ok := param(req.Params, "user")
	if !ok {
		return tgtadm.InvalidRequest, ""
	}
	user, rest, _ := strings.Cut(user, ",")
	_, there := s.accounts[user]
	if req.Op == tgtadm.New {
		secret, ok := param(rest, "password")
		switch {
		case !ok:
			return tgtadm.InvalidRequest, ""
		case there:
			return tgtadm.UserExists, ""
		}
		s.accounts[user] = secret
		return tgtadm.Success, ""
	}
	if !there {
		return tgtadm.NoUser, ""
	}
	if req.Op == tgtadm.Delete {
		delete(s.accounts, user)
		for _, t := range s.targets {
			t.accounts = slices.DeleteFunc(t.accounts, func(u string) bool { return u == user })
		}
		return tgtadm.Success, ""
	}
	t := s.targets[req.TID]
	if t == nil {
		return tgtadm.NoTarget, ""
	}
	t.accounts = slices.DeleteFunc(t.accounts, func(u string) bool { return u == user })
	if req.Op == tgtadm.Bind {
		t.accounts = append(t.accounts, user)
	}
	return tgtadm.Success, ""
}
