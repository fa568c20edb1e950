package tgt

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/driver"
	"rerack.dev/rerack/sanzoning/tgt/tgtadm"
)

// job is one mask on its way to the daemon.
type job struct {
	want    driver.Mask // initiators sorted
	allowed map[netip.Addr]bool
	now     *target
	rules   Rules
	settle  bool // somebody lost access, now or in an attempt that was not confirmed
	bound   []string
}

// Apply sets the masks, all or none as far as can be told beforehand: a volume that is missing, stale or
// not ours stops the whole change before anything is touched. A change that breaks off later leaves its
// volumes with the rules they had, or revoked; repeating the call brings it to its end.
func (a *Array) Apply(ctx context.Context, c driver.MaskChange) (driver.MaskResult, error) {
	select {
	case a.writer <- struct{}{}:
		defer func() { <-a.writer }()
	case <-ctx.Done():
		return driver.MaskResult{}, fault.Wrap(ctx.Err(), "wait for another change", a.where)
	}
	all, err := a.targets(ctx)
	if err != nil {
		return driver.MaskResult{}, err
	}
	jobs := make([]*job, 0, len(c.Masks))
	var res driver.MaskResult
	for _, m := range c.Masks {
		j, err := a.prepare(m, all)
		if err != nil {
			return driver.MaskResult{}, err
		}
		if got := j.now.mask(); got.Epoch != m.Epoch || !slices.Equal(got.Initiators, j.want.Initiators) {
			res.Changed = append(res.Changed, m.Volume)
		}
		jobs = append(jobs, j)
	}
	for _, step := range []func(context.Context, []*job) error{a.mark, a.revoke, a.drain, a.grant, a.sweep} {
		if err := step(ctx, jobs); err != nil {
			a.takeBack(ctx, jobs)
			return driver.MaskResult{}, err
		}
	}
	if res.After, err = a.verify(ctx, jobs); err != nil {
		a.takeBack(ctx, jobs)
		return driver.MaskResult{}, err
	}
	for _, v := range res.Changed {
		a.cfg.Logger.InfoContext(ctx, "mask set", "array", a.where, "volume", v, "owner", c.Owner)
	}
	return res, nil
}

func (a *Array) volume(name string) string { return a.where + ", volume " + name }

// prepare checks one mask against what is there.
func (a *Array) prepare(m driver.Mask, all map[string]*target) (*job, error) {
	j := &job{want: m, allowed: map[netip.Addr]bool{}}
	j.want.Initiators = []string{}
	for _, s := range m.Initiators {
		addr, err := parseInitiator(s)
		if err != nil {
			return nil, fault.Wrap(err, "check the mask", a.volume(m.Volume))
		}
		if !j.allowed[addr] {
			j.want.Initiators = append(j.want.Initiators, s)
		}
		j.allowed[addr] = true
	}
	slices.Sort(j.want.Initiators)
	if m.Epoch < 1 || m.Epoch > MaxEpoch {
		return nil, &fault.Error{Kind: fault.Invalid, Where: a.volume(m.Volume), What: "check the mask",
			Evidence: fmt.Sprintf("epoch %d is not from 1 to %d, which is what a marker holds", m.Epoch, MaxEpoch)}
	}
	t := all[m.Volume]
	if t == nil || t.driver != "iscsi" {
		return nil, &fault.Error{Kind: fault.NotFound, Where: a.volume(m.Volume), What: "there is no such iSCSI target"}
	}
	return j, a.look(j, t)
}

// look takes over the present rules of a job's target, unless they forbid the change.
func (a *Array) look(j *job, t *target) error {
	j.now, j.rules = t, ParseRules(t.rules)
	if j.rules.Epoch > j.want.Epoch {
		return &fault.Error{Kind: fault.Stale, Where: a.volume(t.name), What: "set the mask",
			Evidence: fmt.Sprintf("epoch %d is on the target, the change has %d", j.rules.Epoch, j.want.Epoch)}
	}
	if len(j.rules.Loose) > 0 && !j.rules.ours() && !slices.Contains(a.cfg.Owned, t.name) {
		return &fault.Error{Kind: fault.Unsafe, Where: a.volume(t.name), What: "set the mask",
			Evidence: fmt.Sprintf("somebody else's rules %q admit more than addresses", j.rules.Loose),
			Next:     "remove them with tgtadm, or declare the target as owned"}
	}
	return nil
}

// refresh reads the targets of the jobs again.
func (a *Array) refresh(ctx context.Context, jobs []*job) error {
	all, err := a.targets(ctx)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		t := all[j.want.Volume]
		if t == nil || t.tid != j.now.tid {
			return &fault.Error{Kind: fault.Conflict, Where: a.volume(j.want.Volume), What: "the target was removed meanwhile"}
		}
		if err := a.look(j, t); err != nil {
			return err
		}
	}
	return nil
}

// rule adds or removes one access rule. That it is there, or gone, already is success.
func (a *Array) rule(ctx context.Context, j *job, op tgtadm.Op, rule string) error {
	req := tgtadm.Request{Mode: tgtadm.Target, Op: op, TID: j.now.tid, Params: "initiator-address=" + rule}
	what, fine := "bind "+rule, tgtadm.RuleExists
	if op == tgtadm.Unbind {
		what, fine = "unbind "+rule, tgtadm.NoRule
	}
	_, err := a.call(ctx, what+" at "+j.now.name, req)
	if code, ok := tgtadm.CodeOf(err); ok && code == fine {
		return nil
	}
	return err
}

// unbindLoose removes a rule that may stand among the addresses or among the names.
func (a *Array) unbindLoose(ctx context.Context, j *job, rule string) error {
	err := a.rule(ctx, j, tgtadm.Unbind, rule)
	if err != nil {
		return err
	}
	_, err = a.call(ctx, "unbind "+rule+" at "+j.now.name,
		tgtadm.Request{Mode: tgtadm.Target, Op: tgtadm.Unbind, TID: j.now.tid, Params: "initiator-name=" + rule})
	if code, ok := tgtadm.CodeOf(err); ok && code == tgtadm.NoRule {
		return nil
	}
	return err
}

// mark writes the epoch of each job to its target, and reads the rules again: from here on an older
// change is refused, and a newer one that came in between stops this one.
func (a *Array) mark(ctx context.Context, jobs []*job) error {
	for _, j := range jobs {
		strays, err := a.strays(ctx, j)
		if err != nil {
			return err
		}
		j.settle = len(strays) > 0 || len(j.losers()) > 0 || len(j.rules.Loose) > 0
		if m := marker(j.want.Epoch); !slices.Contains(j.rules.Markers, m) {
			if err := a.rule(ctx, j, tgtadm.Bind, m); err != nil {
				return err
			}
		}
		if j.settle && !j.rules.Unsettled {
			if err := a.rule(ctx, j, tgtadm.Bind, unsettled); err != nil {
				return err
			}
		}
	}
	if err := a.refresh(ctx, jobs); err != nil {
		return err
	}
	for _, j := range jobs {
		j.settle = j.settle || j.rules.Unsettled
	}
	return nil
}

func (j *job) losers() []string {
	var out []string
	for _, addr := range j.rules.Addresses {
		if !j.allowed[addr] {
			out = append(out, addr.String())
		}
	}
	return out
}

// revoke withdraws the rules of all who lose access.
func (a *Array) revoke(ctx context.Context, jobs []*job) error {
	for _, j := range jobs {
		for _, rule := range j.losers() {
			if err := a.rule(ctx, j, tgtadm.Unbind, rule); err != nil {
				return err
			}
		}
		for _, rule := range j.rules.Loose {
			if err := a.unbindLoose(ctx, j, rule); err != nil {
				return err
			}
		}
	}
	return nil
}

// strays lists the connections to a job's target of anybody but those it allows.
func (a *Array) strays(ctx context.Context, j *job) ([]connection, error) {
	conns, err := a.connections(ctx, j.now)
	return slices.DeleteFunc(conns, func(c connection) bool { return j.allowed[c.address] }), err
}

// drain ends the sessions of all who lost access and waits until none is listed: a session is listed
// until its last write is done (hazard H26). Where somebody lost access it goes on for the login window.
func (a *Array) drain(ctx context.Context, jobs []*job) error {
	jobs = slices.DeleteFunc(slices.Clone(jobs), func(j *job) bool { return !j.settle })
	if len(jobs) == 0 {
		return nil
	}
	began := time.Now()
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		if err := a.refresh(ctx, jobs); err != nil {
			return err
		}
		live := 0
		var last *job
		for _, j := range jobs {
			strays, err := a.strays(ctx, j)
			if err != nil {
				return err
			}
			if live += len(strays); len(strays) > 0 {
				last = j
			}
			if err := a.end(ctx, j, strays); err != nil {
				return err
			}
		}
		passed := time.Since(began)
		switch {
		case live == 0 && passed >= a.cfg.LoginWindow:
			return nil
		case live > 0 && passed >= a.cfg.LoginWindow+a.cfg.DrainTimeout:
			return &fault.Error{Kind: fault.Unverified, Where: a.volume(last.now.name), What: "end sessions without access",
				Evidence: fmt.Sprintf("%d connections are still listed after %v", live, passed.Round(time.Millisecond)),
				Next:     "the volume is not fenced: power off the old holder or stop tgtd"}
		}
		wait := pause
		if live == 0 {
			wait = min(pause, a.cfg.LoginWindow-passed)
		}
		select {
		case <-ctx.Done():
			return fault.Wrap(ctx.Err(), "wait for sessions to end", a.where)
		case <-time.After(wait):
		}
	}
}

// end closes connections; one that is gone already is fine.
func (a *Array) end(ctx context.Context, j *job, conns []connection) error {
	for _, c := range conns {
		_, err := a.call(ctx, fmt.Sprintf("end session %d of %s", c.sid, j.now.name),
			tgtadm.Request{Mode: tgtadm.Connection, Op: tgtadm.Delete, TID: j.now.tid, SID: c.sid, CID: c.cid})
		if code, ok := tgtadm.CodeOf(err); ok && (code == tgtadm.NoSession || code == tgtadm.NoConnection) {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// grant binds those who gain access, after everybody else has lost it.
func (a *Array) grant(ctx context.Context, jobs []*job) error {
	if err := a.refresh(ctx, jobs); err != nil {
		return err
	}
	for _, j := range jobs {
		if extra := append(j.losers(), j.rules.Loose...); len(extra) > 0 {
			return &fault.Error{Kind: fault.Unverified, Where: a.volume(j.now.name), What: "withdraw access",
				Evidence: fmt.Sprintf("the rules %q are still there, or again", extra), Next: "find out who else changes this target"}
		}
	}
	for _, j := range jobs {
		for _, s := range j.want.Initiators {
			if slices.Contains(j.rules.initiators(), s) {
				continue
			}
			j.bound = append(j.bound, s)
			if err := a.rule(ctx, j, tgtadm.Bind, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweep removes the markers of older epochs, and the sign that a revocation is under way.
func (a *Array) sweep(ctx context.Context, jobs []*job) error {
	for _, j := range jobs {
		for _, m := range j.rules.Markers {
			if m == marker(j.want.Epoch) {
				continue
			}
			if err := a.rule(ctx, j, tgtadm.Unbind, m); err != nil {
				return err
			}
		}
		if j.rules.Unsettled {
			if err := a.rule(ctx, j, tgtadm.Unbind, unsettled); err != nil {
				return err
			}
		}
	}
	return nil
}

// verify reads everything back.
func (a *Array) verify(ctx context.Context, jobs []*job) ([]driver.Mask, error) {
	if err := a.refresh(ctx, jobs); err != nil {
		return nil, err
	}
	after := make([]driver.Mask, 0, len(jobs))
	for _, j := range jobs {
		got := j.now.mask()
		strays, err := a.strays(ctx, j)
		if err != nil {
			return nil, err
		}
		if got.Epoch != j.want.Epoch || !slices.Equal(got.Initiators, j.want.Initiators) || len(strays) > 0 || j.rules.Unsettled {
			return nil, &fault.Error{Kind: fault.Unverified, Where: a.volume(j.now.name), What: "set the mask",
				Evidence: fmt.Sprintf("reads back epoch %d, initiators %v, %d sessions without access", got.Epoch, got.Initiators, len(strays))}
		}
		after = append(after, got)
	}
	return after, nil
}

// takeBack undoes grants of a change that failed where a newer epoch has overtaken it: the newer holder
// is alone then. It may cost the newer change a grant that both made, which its next Apply restores.
func (a *Array) takeBack(ctx context.Context, jobs []*job) {
	if !slices.ContainsFunc(jobs, func(j *job) bool { return len(j.bound) > 0 }) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.cfg.CallTimeout)
	defer cancel()
	all, err := a.targets(ctx)
	for _, j := range jobs {
		t := all[j.want.Volume]
		if t == nil || ParseRules(t.rules).Epoch <= j.want.Epoch {
			continue
		}
		for _, s := range j.bound {
			err = errors.Join(err, a.rule(ctx, j, tgtadm.Unbind, s))
		}
	}
	if err != nil {
		a.cfg.Logger.ErrorContext(ctx, "a grant with an old epoch may stay", "array", a.where, "err", err)
	}
}
