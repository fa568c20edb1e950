package policies

import "time"

// EvidenceKind is a way to notice that something is down. Kinds that die of one cause count once.
type EvidenceKind string

const (
	EvidenceBMC     EvidenceKind = "bmc"     // a machine's BMC is silent, or says off
	EvidenceSwitch  EvidenceKind = "switch"  // a switch's management is silent
	EvidenceLink    EvidenceKind = "link"    // a surviving switch sees no carrier towards the subject
	EvidenceStorage EvidenceKind = "storage" // array or fabric sees no login of the machine
	EvidenceSensor  EvidenceKind = "sensor"  // a rack, feed or environment alarm
	EvidencePerson  EvidenceKind = "person"  // a signed statement
	EvidenceAgent   EvidenceKind = "agent"   // a hypervisor agent or workload stopped or keeps reporting
)

// Sign is what an observation says. Unknown is never down.
type Sign string

const (
	SignUnknown Sign = "unknown"
	SignUp      Sign = "up"
	SignDown    Sign = "down"
)

// Evidence is one observation of one subject from one source.
type Evidence struct {
	Kind    EvidenceKind `json:"kind"`
	Subject string       `json:"subject"` // "machine/a01", "switch/tor-a", "rack/rack-a"
	Sign    Sign         `json:"sign"`
	At      time.Time    `json:"at"`    // when it was last read
	Since   time.Time    `json:"since"` // since when it has been saying the same
	Source  string       `json:"source"`
	Detail  string       `json:"detail,omitempty"`
}

// VerdictState is what is believed of a failure domain.
type VerdictState string

const (
	VerdictUp      VerdictState = "up"
	VerdictSuspect VerdictState = "suspect" // something is silent, not enough to act on
	VerdictBurned  VerdictState = "burned"  // enough independent evidence, held long enough
	VerdictCutOff  VerdictState = "cut-off" // so much is silent at once that the fault is ours (rule F6)
)

// Verdict is a decision on one failure domain with what it rests on.
type Verdict struct {
	Domain  string         `json:"domain"`
	State   VerdictState   `json:"state"`
	Reason  string         `json:"reason"`            // one sentence for people
	Kinds   []EvidenceKind `json:"kinds,omitempty"`   // independent kinds that say down for the whole domain
	Missing []string       `json:"missing,omitempty"` // what would make it certain
	Against []Evidence     `json:"against,omitempty"` // signs of life
	Used    []Evidence     `json:"used,omitempty"`    // a bounded sample of what was used, at most 40
}

// DomainFacts is what Judge needs of the topology.
type DomainFacts struct {
	Domain     string              // "rack/rack-a"
	Machines   []string            // machines in it, without those in maintenance
	Switches   []string            // switches in it
	Stored     []string            // machines in it that use iSCSI or FC and so have logins to miss
	Homes      map[string][]string // machine -> switches it is cabled to, once per NIC
	Uplinks    map[string]int      // switch in it -> its uplinks; that many have to be seen down. Missing: one is enough
	Total      int                 // machines of the whole site
	SilentAll  int                 // machines of the whole site whose BMC is silent
	Disclaimer string              // set when the observer itself was just started or cut off: no verdict
}
