package bmc

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
)

// box is one physical BMC: the queue in front of it and the session on it. BMCs freeze under parallel
// requests and have few session slots, so there is one of each per address (hazard H12).
type box struct {
	cfg   Config
	queue chan struct{} // one token; its holder owns the fields up to mu

	drv        driver.BMC
	key        sessionKey
	identity   *driver.Inventory // as read over drv; nil until read, and again after any silence
	proto      Protocol
	protoUntil time.Time
	breaker    breaker

	mu      sync.Mutex
	last    driver.Reading
	refused *refusal
	status  Status
}

// sessionKey is what a session depends on; a client that differs in it gets its own session.
type sessionKey struct {
	protocol                       Protocol
	address, credential, ca, print string
}

// refusal is a login that was refused. Trying again would lock the account, so nobody does.
type refusal struct {
	sum [sha256.Size]byte
	at  time.Time
	err error
}

// Status is what is known of a box, for people.
type Status struct {
	Protocol     Protocol  `json:"protocol,omitempty"` // in use or last in use
	SilentCalls  int       `json:"silentCalls"`        // in a row
	OpenUntil    time.Time `json:"openUntil,omitzero"` // the breaker lets nothing through until then
	LoginRefused bool      `json:"loginRefused"`       // until credentials change or ResetLogin
	LastError    string    `json:"lastError,omitempty"`
}

func newBox(cfg Config) *box {
	b := &box{cfg: cfg, queue: make(chan struct{}, 1)}
	b.queue <- struct{}{}
	b.breaker = breaker{threshold: cfg.BreakerThreshold, base: cfg.BreakerOpen, max: 8 * cfg.BreakerOpen}
	return b
}

// call is one turn at the BMC.
type call struct {
	what    string
	budget  time.Duration // for login and call together, counted from leaving the queue
	changes bool          // the machine's identity is verified first
	fn      func(ctx context.Context, drv driver.BMC) error
}

// do waits for the turn and runs fn on a live session, twice at most: a session that was lost is opened
// again, which is safe because driver calls state an end and not a gesture.
func (b *box) do(ctx context.Context, ep Endpoint, c call) error {
	if err := ep.Validate(); err != nil {
		return err
	}
	select {
	case <-b.queue:
	case <-ctx.Done():
		return &fault.Error{Kind: fault.Busy, Where: ep.where(), What: c.what,
			Evidence: "still waiting behind another call to this BMC", Err: ctx.Err()}
	}
	defer func() { b.queue <- struct{}{} }()

	if err := b.breaker.allow(b.cfg.Clock.Now()); err != nil {
		return fault.Wrap(err, c.what, ep.where())
	}
	budget, cancel := context.WithTimeout(ctx, c.budget)
	defer cancel()
	err := b.attempt(budget, ep, c)
	if errors.Is(err, driver.ErrSessionLost) {
		b.cfg.Logger.InfoContext(ctx, "BMC session lost, opening a new one", "machine", ep.Machine, "bmc", ep.Address)
		b.drop(budget)
		err = b.attempt(budget, ep, c)
	}
	// A caller that gave up says nothing about the BMC; our own budget running out does.
	if ctx.Err() == nil {
		b.breaker.record(b.cfg.Clock.Now(), err)
	}
	if fault.Is(err, fault.Unreachable) || fault.Is(err, fault.Timeout) {
		b.identity = nil
	}
	b.note(err)
	return fault.Wrap(err, c.what, ep.where())
}

func (b *box) attempt(ctx context.Context, ep Endpoint, c call) error {
	if err := b.session(ctx, ep, c.changes); err != nil {
		return err
	}
	if c.changes {
		if err := b.verify(ctx, ep); err != nil {
			return err
		}
	}
	return c.fn(ctx, b.drv)
}

// session makes sure that b.drv is a session for ep.
func (b *box) session(ctx context.Context, ep Endpoint, changes bool) error {
	key := sessionKey{ep.Protocol, ep.Address, ep.CredentialRef, ep.CA, ep.Fingerprint}
	if b.drv != nil && b.key == key {
		return nil
	}
	b.drop(ctx)
	cred, err := b.cfg.Credentials(ctx, ep.CredentialRef)
	if err != nil {
		return fault.Wrap(err, "resolve credential "+ep.CredentialRef, "")
	}
	if err := b.mayLogIn(cred); err != nil {
		return err
	}
	proto, err := b.protocol(ctx, ep, changes)
	if err != nil {
		return err
	}
	opener := b.cfg.Openers[proto]
	if opener == nil {
		return fault.Newf(fault.Unsupported, "protocol %s is not configured", proto)
	}
	drv, err := opener.Open(ctx, ep, cred)
	if err != nil {
		if fault.Is(err, fault.Unauthorized) {
			b.refuse(cred, err)
			b.cfg.Logger.WarnContext(ctx, "BMC refused the login; no further try", "machine", ep.Machine, "bmc", ep.Address)
		}
		return fault.Wrap(err, "log in by "+string(proto), "")
	}
	b.drv, b.key, b.identity = drv, key, nil
	return nil
}

// protocol returns the protocol to speak, probing when it must.
func (b *box) protocol(ctx context.Context, ep Endpoint, changes bool) (Protocol, error) {
	if ep.Protocol != Auto {
		b.setProtocol(ep.Protocol)
		return ep.Protocol, nil
	}
	if b.proto != "" && b.cfg.Clock.Now().Before(b.protoUntil) {
		return b.proto, nil
	}
	p, err := probe(ctx, b.cfg.Openers, ep)
	if err != nil {
		return "", err
	}
	if b.proto != "" && b.proto != p {
		// Another protocol may mean another box, or one whose better half is broken: an act that can
		// hurt does not follow it unasked.
		if changes {
			return "", &fault.Error{Kind: fault.Unsafe, What: "protocol changed",
				Evidence: fmt.Sprintf("was %s, answers %s now", b.proto, p), Next: "read the power state, or set the protocol"}
		}
		b.cfg.Logger.WarnContext(ctx, "BMC answers another protocol", slog.String("machine", ep.Machine),
			slog.String("bmc", ep.Address), slog.Any("was", b.proto), slog.Any("now", p))
	}
	b.setProtocol(p)
	b.protoUntil = b.cfg.Clock.Now().Add(b.cfg.ProtocolTTL)
	return p, nil
}

func (b *box) setProtocol(p Protocol) {
	b.proto = p
	b.mu.Lock()
	b.status.Protocol = p
	b.mu.Unlock()
}

// verify compares what the BMC says of its machine with what the endpoint expects (H10, H11). The BMC is
// asked once per session.
func (b *box) verify(ctx context.Context, ep Endpoint) error {
	if ep.ExpectUUID == "" && ep.ExpectSerial == "" {
		if b.cfg.AllowUnidentified {
			return nil
		}
		return &fault.Error{Kind: fault.Unsafe, What: "verify identity", Evidence: "neither a UUID nor a serial number is declared",
			Next: "declare the machine's uuid or serial"}
	}
	if b.identity == nil {
		inv, err := identify(ctx, b.drv)
		if err != nil {
			return fault.Wrap(err, "verify identity", "")
		}
		b.identity = &inv
	}
	return matchIdentity(ep, *b.identity)
}

func identify(ctx context.Context, drv driver.BMC) (driver.Inventory, error) {
	if id, ok := drv.(driver.Identifier); ok {
		return id.Identity(ctx)
	}
	return drv.Inventory(ctx)
}

func (b *box) mayLogIn(cred Credential) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refused == nil {
		return nil
	}
	if b.refused.sum != cred.sum() {
		b.refused = nil
		return nil
	}
	return &fault.Error{Kind: fault.Unauthorized, What: "log in", Evidence: "refused at " + b.refused.at.Format(time.RFC3339) + " and not tried again",
		Err: b.refused.err, Next: "correct the credential, or reset the login of this BMC"}
}

func (b *box) refuse(cred Credential, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refused = &refusal{sum: cred.sum(), at: b.cfg.Clock.Now(), err: err}
}

func (b *box) note(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status.SilentCalls, b.status.OpenUntil, b.status.LastError = b.breaker.failures, time.Time{}, ""
	if b.breaker.open > 0 {
		b.status.OpenUntil = b.breaker.until
	}
	if err != nil {
		b.status.LastError = err.Error()
	}
}

// drop forgets the session. Logging out is a courtesy that gets little time.
func (b *box) drop(ctx context.Context) {
	if b.drv == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := b.drv.Close(ctx); err != nil {
		b.cfg.Logger.DebugContext(ctx, "BMC logout failed", "bmc", b.key.address, "err", err)
	}
	b.drv, b.identity = nil, nil
}

func (b *box) close(ctx context.Context) error {
	select {
	case <-b.queue:
	case <-ctx.Done():
		return fault.Wrap(ctx.Err(), "log out", "BMC "+b.key.address)
	}
	defer func() { b.queue <- struct{}{} }()
	if b.drv == nil {
		return nil
	}
	err := b.drv.Close(ctx)
	b.drv, b.identity = nil, nil
	return fault.Wrap(err, "log out", "BMC "+b.key.address)
}
