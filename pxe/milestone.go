package pxe

import (
	"context"
	"net/netip"
	"time"
)

// Kind of a milestone.
type Kind uint8

const (
	KindDHCP      Kind = iota // firmware or iPXE took its address with a boot file
	KindBootFile              // the loader runs or was fetched
	KindScript                // the boot script was fetched
	KindKernel                // the kernel was fetched whole
	KindPhoneHome             // the booted system reported with its token
	KindHealthy               // the booted system says that it works
	KindFailed                // the machine says that it does not
	KindReboot                // a machine whose token is used up asks to boot again
	KindAlarm                 // something that a person must know of: see Topic and Detail
	KindNote                  // something that explains why a boot does not get on: see Topic and Detail
)

var kindNames = [...]string{"dhcp", "bootfile", "script", "kernel", "phone-home", "healthy", "failed", "reboot", "alarm", "note"}

func (k Kind) String() string { return kindNames[k] }

// MarshalText writes the name.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Topic is what an alarm or a note is about. Of one topic the latest counts.
type Topic uint8

const (
	TopicNone      Topic = iota
	TopicImage           // alarm: a file of the image is missing or not what its digest says; it is never served
	TopicImageRead       // alarm: a file of the image cannot be read now
	TopicToken           // alarm: a boot token is used by somebody else, or again
	TopicTwin            // alarm: two machines ask with one Ethernet address
	TopicLink            // note: the machine asks from a network that its address is not in
	TopicExpired         // note: the machine asks after the end of its boot token
	TopicLoader          // note: there is no boot loader for what the firmware says it is
	TopicSecret          // note: the boot script needs a secret that cannot be had
	TopicScript          // note: the machine fetches its boot script again and again
	TopicBrokenOff       // note: a file was asked for and not fetched to its end
	topics
)

var topicNames = [topics]string{"", "image", "image-read", "token", "twin", "link", "expired", "loader", "secret", "script", "broken-off"}

func (t Topic) String() string { return topicNames[t] }

// Milestone is something a booting machine has reached.
type Milestone struct {
	Machine string
	Run     string
	Epoch   uint64
	Kind    Kind
	At      time.Time
	From    netip.Addr // source of the packet or request: the relay's for dhcp
	Detail  string     // one line for people; printable, at most 1,024 bytes, never the token
	Nonce   string     // phone-home, healthy, failed
	Topic   Topic      // alarm, note
	Count   uint32     // alarm, note: how often this boot server has seen it
	// AgentURL is where a hypervisor agent answers, if the machine runs one.
	AgentURL string
}

// Milestones is the durable sink.
//
// Reached MUST return nil only when the milestone is durable. For KindPhoneHome it MUST decide
// atomically over all boot servers: the first nonce of (Machine, Run, Epoch) is recorded and nil
// returned, the same nonce again is nil again, another is fault.Conflict. For KindHealthy and
// KindFailed a Nonce other than the recorded one is fault.Conflict; so is KindHealthy before any
// phone-home, which KindFailed may precede. An epoch that is over is fault.Stale. Other kinds need no answer.
type Milestones interface {
	Reached(ctx context.Context, m Milestone) error
}

// Join is the request of a booted agent for a certificate.
type Join struct {
	Machine string
	Run     string
	Epoch   uint64
	From    netip.Addr
	CSR     []byte // PKCS #10, DER or PEM as sent; at most 16 KiB and not looked at here
}

// Joiner signs the certificate of an agent. It returns a PEM chain, leaf first, and the PEM of the
// authority the agent shall trust.
type Joiner interface {
	Join(ctx context.Context, j Join) (chain, ca []byte, err error)
}

// Caller is the booted system that asks for something with its boot token, after its phone-home.
type Caller struct {
	Machine string
	Run     string
	Epoch   uint64
	From    netip.Addr
}
