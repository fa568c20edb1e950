package ipxe

import (
	"net/netip"
	"net/url"
	"strings"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/secret"
)

// Limits of single values. A kernel takes a command line of 2,048 bytes on x86 and arm64
// (COMMAND_LINE_SIZE), an iSCSI name has at most 223 bytes (RFC 3720 section 3.2.6.1).
const (
	maxURL     = 512
	maxKey     = 64
	maxValue   = 512
	maxCmdline = 2000
	maxIQN     = 223
	maxFiles   = 16
)

// Param is one kernel parameter. An empty Value is a flag.
type Param struct {
	Key   string `json:"key"`
	Value string `json:"value,omitempty"`
}

func (p Param) String() string {
	if p.Value == "" {
		return p.Key
	}
	return p.Key + "=" + p.Value
}

// Check refuses what could end the argument, the command or the line, or reach a setting of iPXE:
// white space, control characters, quotes, |, &, $ and everything that is not plain ASCII.
func (p Param) Check() error {
	switch {
	case p.Key == "" || len(p.Key) > maxKey || !only(p.Key, keyRunes) || p.Key[0] == '-':
		return invalid("kernel parameter name", p.Key, "1-64 of letters, digits, '.', '_', '-', not starting with '-'")
	case len(p.Value) > maxValue || !only(p.Value, valueRunes):
		return invalid("value of kernel parameter "+p.Key, p.Value, "at most 512 of letters, digits and .,:/=@+~%_-")
	}
	return nil
}

// CheckParams checks each parameter and the length of them all.
func CheckParams(params []Param) error {
	n := 0
	for _, p := range params {
		if err := p.Check(); err != nil {
			return err
		}
		n += len(p.String()) + 1
	}
	if n > maxCmdline {
		return fault.Newf(fault.Invalid, "kernel command line has %d bytes; a kernel takes %d", n, maxCmdline)
	}
	return nil
}

// CheckName checks an iSCSI name: iqn., eui. or naa. and the characters RFC 3722 leaves.
func CheckName(iqn string) error {
	ok := strings.HasPrefix(iqn, "iqn.") || strings.HasPrefix(iqn, "eui.") || strings.HasPrefix(iqn, "naa.")
	if !ok || len(iqn) > maxIQN || !only(iqn, iqnRunes) {
		return invalid("iSCSI name", iqn, "iqn., eui. or naa. and lower-case letters, digits, '.', ':', '-'")
	}
	return nil
}

// CheckURL checks that u is an absolute http or https URL made of characters that mean nothing to iPXE.
func CheckURL(u string) error {
	p, err := url.Parse(u)
	if err != nil || len(u) > maxURL || !only(u, urlRunes) || p.Host == "" || p.User != nil ||
		(p.Scheme != "http" && p.Scheme != "https") {
		return invalid("URL", u, "an absolute http or https URL without user, space, '$', '|', '&' or '#'")
	}
	return nil
}

// Target is an iSCSI logical unit to boot from.
type Target struct {
	Portal    netip.AddrPort
	Name      string // IQN of the target
	LUN       uint16
	Initiator string // IQN to log in with
}

// Check refuses an incomplete or unsafe target.
func (t Target) Check() error {
	if !t.Portal.IsValid() || !t.Portal.Addr().Is4() || t.Portal.Port() == 0 {
		return invalid("iSCSI portal", t.Portal.String(), "an IPv4 address and a port")
	}
	if t.LUN > 255 {
		return fault.Newf(fault.Invalid, "LUN %d: only 0-255 can be written in a boot URI", t.LUN)
	}
	if err := CheckName(t.Name); err != nil {
		return err
	}
	return CheckName(t.Initiator)
}

// Login is a CHAP user and secret; the zero Login is none.
type Login struct {
	User   string
	Secret secret.Text
}

// Check refuses half a login, and characters that a script cannot carry. It never shows the secret.
func (l Login) Check() error {
	switch {
	case l == (Login{}):
		return nil
	case l.User == "" || len(l.User) > maxKey || !only(l.User, valueRunes):
		return invalid("CHAP user", l.User, "1-64 of letters, digits and .,:/=@+~%_-")
	case l.Secret.Reveal() == "" || len(l.Secret.Reveal()) > maxValue || !only(l.Secret.Reveal(), valueRunes):
		return invalid("CHAP secret of "+l.User, "[redacted]", "1-512 of letters, digits and .,:/=@+~%_-: a boot script carries no others")
	}
	return nil
}

const (
	alnum      = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	keyRunes   = alnum + "._-"
	valueRunes = alnum + ".,:/=@+~%_-"
	iqnRunes   = "abcdefghijklmnopqrstuvwxyz0123456789.:-"
	urlRunes   = alnum + ":/._~?=%+,@[]-"
)

func only(s, set string) bool {
	for i := 0; i < len(s); i++ {
		if strings.IndexByte(set, s[i]) < 0 {
			return false
		}
	}
	return true
}

func invalid(what, got, want string) error {
	if len(got) > 80 {
		got = got[:80]
	}
	return fault.Newf(fault.Invalid, "%s %q: want %s", what, got, want)
}
