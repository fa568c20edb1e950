package state

import (
	"context"
	"fmt"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
)

// Key prefixes. A record's key is its prefix and its name.
const (
	keyEpoch   = "epoch"
	LeasesAt   = "lease/"
	MachinesAt = "machine/"
	DomainsAt  = "domain/"
	BootsAt    = "boot/"
	RunsAt     = "run/"
	PlansAt    = "plan/"
	ResultsAt  = "result/"
)

// Lease is the exclusive right to use a workload's identity and volumes.
type Lease struct {
	Workload string         `json:"workload"`
	Epoch    uint64         `json:"epoch"`
	Holder   policies.Where `json:"holder"` // zero: nobody holds it
	// Former is who held it last and is not known to be cut off. While it is set nobody else may hold it.
	Former  policies.Where `json:"former,omitzero"`
	Run     string         `json:"run,omitempty"`
	Since   time.Time      `json:"since"`
	Healthy bool           `json:"healthy"`
}

// Machine is what Rerack has done with a machine and must not forget.
type Machine struct {
	Machine string      `json:"machine"`
	Claim   *Claim      `json:"claim,omitempty"`
	Fence   *FenceState `json:"fence,omitempty"`
	Suspect *Suspect    `json:"suspect,omitempty"`
	Host    *Host       `json:"host,omitempty"`
	// Epoch is the newest with which a run connected it: its ports refuse older ones.
	Epoch uint64 `json:"epoch,omitempty"`
}

// Claim reserves a machine for one run.
type Claim struct {
	Run   string    `json:"run"`
	Epoch uint64    `json:"epoch"`
	For   string    `json:"for"` // workload name, or "host"
	Since time.Time `json:"since"`
}

// FenceState is absorbing: nothing powers on or connects a fenced machine until it is unfenced.
type FenceState struct {
	Run    string           `json:"run"`
	Epoch  uint64           `json:"epoch"`
	Since  time.Time        `json:"since"`
	Fences []policies.Fence `json:"fences,omitempty"` // as read back; empty while fencing is under way
	Zombie *time.Time       `json:"zombie,omitempty"` // when it was seen powered on after it was fenced
}

// Suspect marks a machine that did not do what it should; it is no target until cleared.
type Suspect struct {
	Run    string    `json:"run"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
}

// Host is a machine that runs our hypervisor.
type Host struct {
	AgentURL string    `json:"agentURL"`
	Epoch    uint64    `json:"epoch"`
	Since    time.Time `json:"since"`
	// Existing is the hypervisor of a machine that runs one already, with nothing else set. It is declared
	// and never recorded.
	Existing *topology.Hypervisor `json:"existing,omitempty"`
}

// Domain serialises runs on one failure domain.
type Domain struct {
	Domain string `json:"domain"`
	Last   int    `json:"last"`   // number of the last run
	Active string `json:"active"` // its id while it runs
}

// Epoch returns the newest epoch given out; 1 is that of adopted workloads.
func Epoch(ctx context.Context, s store.Store) (uint64, error) {
	e, _, err := Load[uint64](ctx, s, keyEpoch)
	return max(e, 1), err
}

// NextEpoch gives out a new epoch, larger than every one before, to the named run. Asking again for
// the same run gives the same epoch, so that a repeated step does not fence itself out.
func NextEpoch(ctx context.Context, s store.Store, run string) (uint64, error) {
	type given struct {
		Epoch uint64 `json:"epoch"`
	}
	key := "epoch-of/" + run
	for {
		g, grev, err := Load[given](ctx, s, key)
		if err != nil || g.Epoch != 0 {
			return g.Epoch, err
		}
		last, rev, err := Load[uint64](ctx, s, keyEpoch)
		if err != nil {
			return 0, err
		}
		next := max(last, 1) + 1
		a, err := Encode(next)
		if err != nil {
			return 0, err
		}
		b, err := Encode(given{next})
		if err != nil {
			return 0, err
		}
		err = s.Txn(ctx, store.PutIf(keyEpoch, a, rev), store.PutIf(key, b, grev))
		if err == nil {
			return next, nil
		}
		if !fault.Is(err, fault.Conflict) {
			return 0, fault.Wrap(err, "give out an epoch", run)
		}
	}
}

// TakeLease raises the workload's lease to the run's epoch with nobody as holder: from here on the
// former holder's epoch is stale, and nobody is granted the lease until CutOff says that it is cut off.
// It returns who is not known to be cut off, also when asked again. It refuses (fault.Stale) when
// another run has taken the lease with this epoch or a newer one.
func TakeLease(ctx context.Context, s store.Store, workload, run string, epoch uint64, now time.Time) (former policies.Where, err error) {
	l, err := Update(ctx, s, LeasesAt+workload, func(l *Lease) error {
		if l.Epoch == epoch && l.Run == run {
			return nil
		}
		if l.Epoch >= epoch {
			return &fault.Error{Kind: fault.Stale, Where: "lease of " + workload, What: "take lease",
				Evidence: fmt.Sprintf("run %q holds it with epoch %d, this is %d", l.Run, l.Epoch, epoch), Next: "look at that run"}
		}
		*l = Lease{Workload: workload, Epoch: epoch, Former: l.LastHolder(), Run: run, Since: now}
		return nil
	})
	return l.Former, err
}

// LastHolder is who may still use the workload's identity: its holder, or the former one that is not
// known to be cut off.
func (l Lease) LastHolder() policies.Where {
	if l.Holder != (policies.Where{}) {
		return l.Holder
	}
	return l.Former
}

// GrantLease makes where the holder of the workload under the run's epoch, which must be the lease's. It
// refuses (fault.Unsafe) while another holder is not known to be cut off.
func GrantLease(ctx context.Context, s store.Store, workload, run string, epoch uint64, where policies.Where, now time.Time) error {
	return changeLease(ctx, s, workload, run, epoch, "grant lease", func(l *Lease) error {
		if last := l.LastHolder(); last != (policies.Where{}) && last != where {
			return &fault.Error{Kind: fault.Unsafe, Where: "lease of " + workload, What: "grant lease",
				Evidence: last.Machine + " is not known to be cut off", Next: "recover its failure domain"}
		}
		if l.Holder != where {
			l.Holder, l.Former, l.Since, l.Healthy = where, policies.Where{}, now, false
		}
		return nil
	})
}

// WithdrawLease takes the lease back from a holder that did not come up; nobody is granted it until
// CutOff says that it is cut off.
func WithdrawLease(ctx context.Context, s store.Store, workload, run string, epoch uint64, now time.Time) error {
	return changeLease(ctx, s, workload, run, epoch, "withdraw lease", func(l *Lease) error {
		if l.Holder != (policies.Where{}) {
			l.Former, l.Holder, l.Since, l.Healthy = l.Holder, policies.Where{}, now, false
		}
		return nil
	})
}

// CutOff records that the former holder of the workload cannot act any more.
func CutOff(ctx context.Context, s store.Store, workload, run string, epoch uint64) error {
	return changeLease(ctx, s, workload, run, epoch, "record a fence", func(l *Lease) error {
		l.Former = policies.Where{}
		return nil
	})
}

// changeLease changes a lease that belongs to the run and its epoch.
func changeLease(ctx context.Context, s store.Store, workload, run string, epoch uint64, what string, change func(*Lease) error) error {
	_, err := Update(ctx, s, LeasesAt+workload, func(l *Lease) error {
		if l.Epoch != epoch || l.Run != run {
			return &fault.Error{Kind: fault.Stale, Where: "lease of " + workload, What: what,
				Evidence: "it belongs to run " + l.Run, Next: "look at that run"}
		}
		return change(l)
	})
	return err
}

// ClaimMachine reserves a machine for a run in one compare-and-set together with the checks that it is
// neither fenced, suspect, claimed by another run (rule F7), nor used by a newer one since.
func ClaimMachine(ctx context.Context, s store.Store, machine string, c Claim) error {
	_, err := Update(ctx, s, MachinesAt+machine, func(m *Machine) error {
		m.Machine = machine
		switch {
		case m.Fence != nil:
			return conflict(machine, "it is fenced by "+m.Fence.Run, "rerack machine unfence "+machine)
		case m.Suspect != nil:
			return conflict(machine, "it is suspect: "+m.Suspect.Reason, "rerack machine clear "+machine)
		case m.Claim != nil && m.Claim.Run != c.Run:
			return conflict(machine, "run "+m.Claim.Run+" has claimed it", "choose another machine")
		case m.Epoch > c.Epoch:
			return conflict(machine, fmt.Sprintf("a newer run has used it, epoch %d", m.Epoch), "choose another machine")
		case m.Claim != nil && m.Claim.Epoch == c.Epoch && m.Claim.For == c.For:
			return nil
		}
		m.Claim, m.Epoch = &c, c.Epoch
		return nil
	})
	return err
}

func conflict(machine, evidence, next string) error {
	return &fault.Error{Kind: fault.Conflict, Where: "machine " + machine, What: "claim", Evidence: evidence, Next: next}
}

// Boot says what a machine or VM shall boot now. The boot plane serves exactly these records.
type Boot struct {
	Name     string            `json:"name"` // record name: the machine's, or the workload's for a VM
	Machine  string            `json:"machine"`
	Workload string            `json:"workload,omitempty"` // empty for a Host, and for a capture
	Capture  bool              `json:"capture,omitempty"`  // its disk is copied by the run
	VM       bool              `json:"vm,omitempty"`
	Run      string            `json:"run"`
	Epoch    uint64            `json:"epoch"`
	Workflow string            `json:"workflow"` // gets the milestones as signals
	MACs     []string          `json:"macs"`
	Address  string            `json:"address"` // with prefix length: 10.1.0.7/24
	Gateway  string            `json:"gateway,omitempty"`
	DNS      []string          `json:"dns,omitempty"`
	Hostname string            `json:"hostname"`
	Type     string            `json:"type"` // topology.ImageType
	Kernel   string            `json:"kernel,omitempty"`
	Initrds  []string          `json:"initrds,omitempty"`
	Cmdline  map[string]string `json:"cmdline,omitempty"`
	File     string            `json:"file,omitempty"` // of types disk, iso and efi
	SAN      *SANBoot          `json:"san,omitempty"`
	Expires  time.Time         `json:"expires"`
	Secure   bool              `json:"secureBoot,omitempty"` // the machine's firmware starts signed programs only
	Held     bool              `json:"held,omitempty"`       // waits in its boot loader until what it depends on is healthy
	Nonce    string            `json:"nonce,omitempty"`      // of the phone-home that consumed the token
	PhonedAt *time.Time        `json:"phonedAt,omitempty"`
	Reboots  int               `json:"reboots,omitempty"` // times it was booted anew because it asked again by itself
	Quick    int               `json:"quick,omitempty"`   // how many of the last of them came soon after the phone-home before
}

// SANBoot is the boot volume of a workload that boots from iSCSI.
type SANBoot struct {
	Portal    string `json:"portal"`
	Target    string `json:"target"`
	LUN       int    `json:"lun"`
	Initiator string `json:"initiator"`
	CHAP      string `json:"chap,omitempty"` // name of the secret to log in with
}

// RunState is where a run stands.
type RunState string

const (
	RunRunning   RunState = "running"
	RunWaiting   RunState = "waiting"   // for a person
	RunDone      RunState = "done"      // everything came back
	RunPartial   RunState = "partial"   // some workloads stay down, with reasons
	RunSuspect   RunState = "suspect"   // not certain enough to act; nothing was touched
	RunFailed    RunState = "failed"    // ended by an error; see Reason
	RunCancelled RunState = "cancelled" // by a person, at a safe point
)

// Ended reports whether the run is over.
func (s RunState) Ended() bool { return s != RunRunning && s != RunWaiting && s != "" }

// RunKind is what a run does.
type RunKind string

const (
	KindRecover RunKind = "" // a failure domain
	KindPlace   RunKind = "place"
	KindRelease RunKind = "release"
	KindCapture RunKind = "capture" // a machine's disk into a volume
)

// Run is one durable procedure, as people see it.
type Run struct {
	ID          string            `json:"id"`
	Kind        RunKind           `json:"kind,omitempty"`
	Domain      string            `json:"domain"` // "workload/web1" for a placement or release, "volume/db1" for a capture
	Runbook     string            `json:"runbook,omitempty"`
	Trigger     string            `json:"trigger"` // person, api, alert, detector
	By          string            `json:"by"`
	Attestation string            `json:"attestation,omitempty"`
	Attested    []Statement       `json:"attested,omitempty"` // that came while it waited for its verdict
	State       RunState          `json:"state"`
	Reason      string            `json:"reason,omitempty"`
	Epoch       uint64            `json:"epoch,omitempty"`
	Revision    int               `json:"revision,omitempty"` // of the topology that it goes by, from its opening on
	Requested   time.Time         `json:"requested"`
	Ended       time.Time         `json:"ended,omitzero"`
	Verdict     *policies.Verdict `json:"verdict,omitempty"`
	Phases      []Phase           `json:"phases,omitempty"`
	Workloads   []string          `json:"workloads,omitempty"` // that the domain held
	Rounds      int               `json:"rounds,omitempty"`
	Approvals   []Approval        `json:"approvals,omitempty"`
	Capture     *CaptureRequest   `json:"capture,omitempty"` // what a run of kind capture was asked for
}

// Phase is one stretch of a run.
type Phase struct {
	Name  string    `json:"name"`
	Start time.Time `json:"start"`
	End   time.Time `json:"end,omitzero"`
	Note  string    `json:"note,omitempty"`
}

// Statement is what a person on site has seen.
type Statement struct {
	By   string    `json:"by"`
	At   time.Time `json:"at"`
	Text string    `json:"text"`
}

// Statement is the last that was made to a run, or none.
func (r Run) Statement() Statement {
	if n := len(r.Attested); n > 0 {
		return r.Attested[n-1]
	}
	return Statement{By: r.By, At: r.Requested, Text: r.Attestation}
}

// Proposed reports whether a person has asked for a run or made a statement to it: who did cannot approve it.
func (r Run) Proposed(by string) bool {
	for _, s := range r.Attested {
		if s.By == by {
			return true
		}
	}
	return by == r.By
}

// Approval is one person's yes.
type Approval struct {
	By string    `json:"by"`
	At time.Time `json:"at"`
}

// Result is what became of one workload, or one Host, in a run.
type Result struct {
	Name       string               `json:"name"`
	Host       bool                 `json:"host,omitempty"` // a machine that was made a Host
	State      string               `json:"state"`          // fencing, planned, booting, healthy, left-out, failed; of a release running or released
	From       string               `json:"from,omitempty"`
	Where      policies.Where       `json:"where,omitzero"`
	Reason     string               `json:"reason"`
	Constraint string               `json:"constraint,omitempty"`
	Priority   int                  `json:"priority,omitempty"`
	Wave       int                  `json:"wave,omitempty"`
	Round      int                  `json:"round,omitempty"`
	Times      map[string]time.Time `json:"times,omitempty"` // fenced, power-on, dhcp, kernel, phone-home, healthy
	Tried      []string             `json:"tried,omitempty"` // machines that failed, with why
}
