package libvirt

import (
	"context"
	"encoding/xml"
	"strings"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

// lockPoll is how often the lock is asked for while somebody else has it.
const lockPoll = 20 * time.Millisecond

// locked lets do change the host, alone.
func (h *Host) locked(ctx context.Context, what string, do func(*session, *view) error) error {
	ctx, end := context.WithTimeout(ctx, h.cfg.ChangeTimeout)
	defer end()
	select {
	case h.turn <- struct{}{}:
		defer func() { <-h.turn }()
	case <-ctx.Done():
		return h.wrap(&fault.Error{Kind: fault.Busy, Evidence: "another change is still under way", Err: ctx.Err()}, what)
	}
	s, err := h.open(ctx, end)
	if err != nil {
		return h.wrap(err, what)
	}
	defer s.close()
	defer h.unlock(s)
	if err := s.lock(); err != nil {
		return h.wrap(err, what)
	}
	v, err := s.look()
	if err == nil {
		err = do(s, v)
	}
	return h.wrap(err, what)
}

// lock takes the host's lock, under a UUID that is new for every change, unless the last one's could not be
// given back: taking it again is success, because libvirtd replaces the secret object of one UUID.
func (s *session) lock() error {
	h := s.h
	if h.token == uuid.Nil {
		token, err := uuid.NewRandom()
		if err != nil {
			return &fault.Error{Kind: fault.Internal, What: "name a lock", Err: err}
		}
		h.token = token
	}
	text, err := define(secret{Ephemeral: "yes", Private: "no", Description: "A change by Rerack is under way",
		UUID: h.token.String(), Usage: usage{Type: "tls", Name: lockUsage}})
	if err != nil {
		return err
	}
	for tries := 0; ; tries++ {
		refused := s.do("lock", func() error { _, err := s.lv.SecretDefineXML(text, 0); return err })
		if refused == nil {
			return nil
		}
		held, err := s.holder()
		if err != nil {
			return err
		}
		switch {
		case held == libvirt.Secret{}:
			if tries > 100 { // it was not given back just now: it cannot be had at all
				return refused
			}
		case held != h.other:
			h.other, h.since = held, time.Now()
		case time.Since(h.since) > h.cfg.LockBroken:
			h.cfg.Logger.WarnContext(s.ctx, "breaking the lock of a change that never ended", "host", h.cfg.Machine)
			// By its UUID: who has broken it already, and taken it anew, keeps it.
			if err := s.drop(held); err != nil {
				return err
			}
		}
		select {
		case <-s.ctx.Done():
			return &fault.Error{Kind: fault.Busy, Evidence: "somebody else's change of this host is still under way", Err: s.ctx.Err()}
		case <-time.After(lockPoll):
		}
	}
}

// holder is the secret object of who has the lock, zero for nobody.
func (s *session) holder() (libvirt.Secret, error) {
	var v view
	v.marks = map[string]uint64{}
	if err := s.lookAtSecrets(&v); err != nil {
		return libvirt.Secret{}, err
	}
	for _, x := range v.secrets {
		if x.UsageType == usageTLS && x.UsageID == lockUsage {
			return x, nil
		}
	}
	return libvirt.Secret{}, nil
}

// unlock gives the lock back, on a connection of its own when the change's is over. One that it cannot
// give back is this Host's still: its next change has it.
func (h *Host) unlock(s *session) {
	mine := libvirt.Secret{UUID: libvirt.UUID(h.token), UsageType: usageTLS, UsageID: lockUsage}
	err := s.drop(mine)
	if err != nil {
		ctx, end := background(s.ctx)
		defer end()
		if s, err = h.open(ctx, end); err == nil {
			defer s.close()
			err = s.drop(mine)
		}
	}
	if err != nil {
		h.cfg.Logger.Warn("the host's lock was not given back", "host", h.cfg.Machine, "err", err)
		return
	}
	h.token = uuid.Nil
}

// drop removes a secret object; one that is gone is success.
func (s *session) drop(x libvirt.Secret) error {
	err := s.do("undefine secret", func() error { return s.lv.SecretUndefine(x) })
	if e, ok := cause(err).(libvirt.Error); ok && e.Code == uint32(libvirt.ErrNoSecret) {
		return nil
	}
	return err
}

// mark makes an epoch the newest of its name, before what is done with it. Older marks are of no more use.
func (s *session) mark(v *view, name string, epoch uint64) error {
	if v.marks[name] < epoch {
		if err := s.keep(epochUsage(name, epoch), "The newest act of Rerack on VM "+name, true); err != nil {
			return err
		}
	}
	for _, x := range v.secrets {
		if n, e, ok := marked(x.UsageID); ok && x.UsageType == usageTLS && n == name && e < max(epoch, v.marks[name]) {
			if err := s.drop(x); err != nil {
				return err
			}
		}
	}
	return nil
}

// keep defines a secret object without a value. Its UUID comes from its usage, so that it can be repeated.
func (s *session) keep(name, description string, persistent bool) error {
	x := secret{Ephemeral: "yes", Private: "no", Description: description, UUID: uuid.NewSHA1(uuid.NameSpaceURL, []byte(name)).String(),
		Usage: usage{Type: "tls", Name: name}}
	if persistent {
		x.Ephemeral = "no"
	}
	text, err := define(x)
	if err != nil {
		return err
	}
	return s.do("define secret", func() error { _, err := s.lv.SecretDefineXML(text, 0); return err })
}

func define(x secret) (string, error) {
	text, err := xml.Marshal(x)
	if err != nil {
		return "", &fault.Error{Kind: fault.Internal, What: "write a secret's definition", Err: err}
	}
	return string(text), nil
}

// logins gives libvirtd the CHAP secrets of a VM's volumes and forgets those of others it had. They are
// private: libvirtd gives them to QEMU and to nobody who asks.
func (s *session) logins(v *view, spec driver.Spec) error {
	wanted := map[string]bool{}
	for _, d := range spec.Disks {
		if d.ISCSI == nil || d.ISCSI.CHAP == nil {
			continue
		}
		id := loginUsage(spec.Name, d.Volume)
		wanted[id] = true
		text, err := define(secret{Ephemeral: "no", Private: "yes", Description: "CHAP of volume " + d.Volume + " of VM " + spec.Name,
			UUID: uuid.NewSHA1(uuid.NameSpaceURL, []byte(id)).String(), Usage: usage{Type: "iscsi", Target: id}})
		if err != nil {
			return err
		}
		if err := s.do("define secret", func() error {
			x, err := s.lv.SecretDefineXML(text, 0)
			if err != nil {
				return err
			}
			return s.lv.SecretSetValue(x, []byte(string(d.ISCSI.CHAP.Secret)), 0)
		}); err != nil {
			return err
		}
	}
	return s.forgetLogins(v, spec.Name, wanted)
}

func (s *session) forgetLogins(v *view, vm string, but map[string]bool) error {
	for _, x := range v.secrets {
		if x.UsageType == usageISCSI && strings.HasPrefix(x.UsageID, loginUsage(vm, "")) && !but[x.UsageID] {
			if err := s.drop(x); err != nil {
				return err
			}
		}
	}
	return nil
}
