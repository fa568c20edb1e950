package brocade

import (
	"context"
	"net/http"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/driver"
)

// abortTimeout bounds cleaning up after a failure, for which the caller's context may have no time left.
const abortTimeout = 10 * time.Second

// step is one request of a transaction.
type step struct {
	method string
	body   defined
}

func (e edit) steps(cfgName string) []step {
	var steps []step
	zones := func(method string, z []deviceZone) {
		if len(z) > 0 {
			steps = append(steps, step{method, defined{Zones: z}})
		}
	}
	inCfg := func(method string, names []string) {
		if len(names) > 0 {
			steps = append(steps, step{method, defined{Cfgs: []cfg{{Name: cfgName, Members: names}}}})
		}
	}
	zones(http.MethodDelete, e.replace)
	zones(http.MethodPost, e.create)
	inCfg(http.MethodPost, e.join) // POST of a list that is there adds to it
	inCfg(http.MethodDelete, e.leave)
	zones(http.MethodDelete, e.remove)
	return steps
}

// transact stages the edit and commits it. On any error nothing is left pending, as far as the switch can
// still be reached.
func (s *session) transact(ctx context.Context, before *zoneDB, e edit, want []driver.Zone) error {
	for i, st := range e.steps(before.cfg) {
		err := s.send(ctx, st.method, pathDefined, st.body)
		switch {
		case err == nil:
		case i == 0 && refused(err):
			// No transaction is ours, so none is ours to clear.
			return s.explain(ctx, before, false, err)
		default:
			return s.giveUp(ctx, s.explain(ctx, before, true, err))
		}
	}
	err := s.send(ctx, http.MethodPatch, pathEffective, effective{Checksum: before.checksum, CfgName: before.cfg})
	if err == nil {
		return nil
	}
	// The answer may be lost and the commit not, and a refusal does not say why.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
	defer cancel()
	if now, rerr := s.readEffective(ctx); rerr == nil && now.satisfies(want) {
		return nil
	}
	return s.giveUp(ctx, s.explain(ctx, before, true, err))
}

// refused says that the switch answered, and did nothing.
func refused(err error) bool {
	switch fault.KindOf(err) {
	case fault.Invalid, fault.Busy, fault.Unauthorized, fault.NotFound:
		return true
	}
	return false
}

// giveUp clears what was staged and returns the cause.
func (s *session) giveUp(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
	defer cancel()
	if err := s.abort(ctx); err != nil {
		s.cfg.Logger.WarnContext(ctx, "could not clear a zoning transaction; a later change does", "switch", s.cfg.URL, "error", err)
	}
	return cause
}

// explain looks for what happened between our reading and our edit, because the switch's own words for it
// differ from release to release: somebody committed, or opened a transaction. holding says that the
// transaction of our account that is open is this one.
func (s *session) explain(ctx context.Context, before *zoneDB, holding bool, err error) error {
	if !refused(err) {
		return err
	}
	if now, rerr := s.readEffective(ctx); rerr == nil && now.checksum != before.checksum {
		return &fault.Error{Kind: fault.Conflict, What: "set zones", Where: s.cfg.URL, Evidence: "somebody else committed in between", Err: err}
	}
	if l, lerr := s.readLock(ctx); lerr == nil && l.Domain != 0 && !(holding && s.ours(l)) {
		return s.held(l, time.Duration(l.Timeout-l.RemainingTime)*time.Second)
	}
	if !holding && fault.Is(err, fault.Invalid) {
		return &fault.Error{Kind: fault.Busy, What: "open a transaction", Where: s.cfg.URL, Err: err,
			Next: "repeat: most likely somebody had one open that has ended by now"}
	}
	return err
}
