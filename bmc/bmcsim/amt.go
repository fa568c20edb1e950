package bmcsim

import (
	"crypto/md5" //nolint:gosec // AMT's digest
	"crypto/subtle"
	"encoding/hex"
	"net"
	"net/http"
	"strconv"
	"strings"

	"rerack.dev/rerack/bmc/driver"
)

// amtState is what an AMT has beside its machine. It is guarded by BMC.mu.
type amtState struct {
	nonces  map[string]uint64 // challenges given out, with the highest count that answered one
	enums   map[string]amtEnum
	role    int    // of the boot configuration: 1 next single use, 32768 not next
	source  string // InstanceID of the boot source that is first in order, "" for none
	options map[string]string
}

// amtEnum is an enumeration under way: what it has still to give, as it was when it began.
type amtEnum struct {
	resource string
	items    []string
}

func newAMT() *amtState {
	return &amtState{nonces: map[string]uint64{}, enums: map[string]amtEnum{}, role: amtNotNext, options: map[string]string{}}
}

// forget drops what a restart of the management engine drops.
func (a *amtState) forget() {
	clear(a.nonces)
	clear(a.enums)
}

const amtRealm = "Digest:4C4C45440051481080524B4C04F4D373"

// wsman is Intel AMT: one URL, digest authentication, and HTML for whatever is not SOAP.
func (b *BMC) wsman(r *http.Request, conn net.Conn) reply {
	switch {
	case r.URL.Path != "/wsman":
		return html(http.StatusNotFound)
	case r.Method != http.MethodPost:
		return html(http.StatusMethodNotAllowed)
	}
	if refused := b.digest(r, conn); refused != nil {
		return *refused
	}
	raw, err := readAll(r)
	if err != nil {
		return html(http.StatusBadRequest)
	}
	return b.soap(raw)
}

func html(status int) reply {
	return reply{status: status, header: http.Header{"Server": {"Intel(R) Active Management Technology 16.1.30.2269"}},
		body: document{"text/html", "<!DOCTYPE HTML><html><body><h1>" + strconv.Itoa(status) + " " + http.StatusText(status) + "</h1></body></html>"}}
}

// digest checks the login of one request as RFC 7616 section 3.4 describes for MD5 and qop=auth, and
// makes a session of it; nil lets the request pass. The arithmetic is written out here, apart from the
// library that the driver uses, so that the two check each other.
func (b *BMC) digest(r *http.Request, conn net.Conn) *reply {
	p := digestParameters(r.Header.Get("Authorization"))
	if p == nil {
		return b.challenge()
	}
	nc, err := strconv.ParseUint(p["nc"], 16, 64)
	f := b.Faults()

	b.mu.Lock()
	seen, known := b.amt.nonces[p["nonce"]]
	_, open := b.sessions[p["nonce"]]
	if err != nil || !known || nc <= seen {
		b.mu.Unlock()
		return b.challenge() // a nonce of before a restart, or an answer heard and sent again
	}
	b.amt.nonces[p["nonce"]] = nc
	b.mu.Unlock()

	if !open {
		b.count("login")
	}
	ok := false
	for _, u := range b.cfg.Users {
		want := digestResponse(u.User, amtRealm, u.Password.Reveal(), r.Method, p)
		ok = ok || (u.User == p["username"] && subtle.ConstantTimeCompare([]byte(want), []byte(p["response"])) == 1)
	}
	if !ok || p["realm"] != amtRealm || p["qop"] != "auth" || p["uri"] != r.URL.Path || (!open && f.AuthFail) {
		b.count("login.refused")
		return b.challenge()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !open && len(b.sessions) >= b.cfg.Profile.MaxSessions {
		full := html(http.StatusServiceUnavailable)
		return &full
	}
	b.sessions[p["nonce"]] = redfishSession{conn: conn}
	return nil
}

// challenge refuses with a new nonce. AMT says stale="false" to every one, and ends the connection.
func (b *BMC) challenge() *reply {
	nonce := token()
	b.mu.Lock()
	if len(b.amt.nonces) >= 256 { // nobody is owed an old one
		clear(b.amt.nonces)
	}
	b.amt.nonces[nonce] = 0
	b.mu.Unlock()
	out := html(http.StatusUnauthorized)
	out.header.Set("Www-Authenticate", `Digest realm="`+amtRealm+`", nonce="`+nonce+`",stale="false",qop="auth"`)
	out.header.Set("Connection", "close")
	return &out
}

// digestParameters takes an Authorization header apart; nil is none. No value of ours holds a comma.
func digestParameters(header string) map[string]string {
	rest, ok := strings.CutPrefix(header, "Digest ")
	if !ok {
		return nil
	}
	out := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(part), "=")
		out[k] = strings.Trim(v, `"`)
	}
	return out
}

// digestResponse is RFC 7616 section 3.4.1 for qop=auth.
func digestResponse(user, realm, password, method string, p map[string]string) string {
	return md5hex(md5hex(user+":"+realm+":"+password) + ":" + p["nonce"] + ":" + p["nc"] + ":" + p["cnonce"] + ":auth:" + md5hex(method+":"+p["uri"]))
}

func md5hex(s string) string {
	sum := md5.Sum([]byte(s)) //nolint:gosec // AMT's digest
	return hex.EncodeToString(sum[:])
}

// DMTF's power states, as AMT uses them.
const (
	amtOn          = 2
	amtCycle       = 5
	amtOffHard     = 6
	amtOff         = 8
	amtReset       = 10
	amtOffGraceful = 12
)

func (b *BMC) amtPower() (state int, available []int) {
	switch b.power() {
	case driver.PowerOn:
		available = []int{amtReset, amtOff, amtCycle, 11, 4, 7, 14, amtOffGraceful}
		if b.cfg.Profile.NoGraceful {
			available = available[:6]
		}
		return amtOn, available
	case driver.PowerOff:
		return amtOff, []int{amtOn}
	}
	return amtOffGraceful, nil
}

// amtPress is RequestPowerStateChange; the result is its ReturnValue.
func (b *BMC) amtPress(state string) int {
	n, _ := strconv.Atoi(state)
	button, ok := map[int]Button{amtOn: PressOn, amtOff: PressOff, amtOffHard: PressOff, amtOffGraceful: PressGraceful, amtCycle: PressCycle, amtReset: PressReset}[n]
	switch {
	case !ok || n == amtOffGraceful && b.cfg.Profile.NoGraceful:
		return amtNotSupported
	case b.press(button) != nil:
		return amtBadTransition
	}
	return 0
}

// Return values of AMT's methods.
const (
	amtNotSupported  = 1
	amtInvalid       = 5
	amtBadTransition = 4097
)

// The one boot configuration and its sources.
const (
	amtNextSingleUse = 1
	amtNotNext       = 32768

	amtConfig = "Intel(r) AMT: Boot Configuration 0"
	amtDisk   = "Intel(r) AMT: Force Hard-drive Boot"
	amtPXE    = "Intel(r) AMT: Force PXE Boot"
	amtCD     = "Intel(r) AMT: Force CD/DVD Boot"
)

func amtSources() []string { return []string{amtDisk, amtPXE, amtCD} }

// amtBoot returns role and source after the machine may have used them up: a boot reverts both, and the
// options with them.
func (b *BMC) amtBoot() (role int, source string, options map[string]string) {
	spent := b.boot().Device == driver.BootDefault
	b.mu.Lock()
	defer b.mu.Unlock()
	if spent && b.amt.role == amtNextSingleUse && b.amt.source != "" {
		b.amt.role, b.amt.source = amtNotNext, ""
		clear(b.amt.options)
	}
	out := map[string]string{}
	for k, v := range b.amt.options {
		out[k] = v
	}
	return b.amt.role, b.amt.source, out
}

// amtArrange changes role or source and lets the machine know what the next boot is now.
func (b *BMC) amtArrange(change func(*amtState)) error {
	b.amtBoot()
	if b.Faults().RevertBoot {
		b.count("boot.set")
		return nil
	}
	b.mu.Lock()
	change(b.amt)
	want := driver.BootOverride{Device: driver.BootDefault}
	if dev, ok := map[string]driver.BootDevice{amtDisk: driver.BootDisk, amtPXE: driver.BootPXE, amtCD: "cd"}[b.amt.source]; ok && b.amt.role == amtNextSingleUse {
		want = driver.BootOverride{Device: dev, Once: true}
	}
	b.mu.Unlock()
	if want == b.cfg.Backend.Boot() {
		return nil
	}
	return b.setBoot(want)
}

// SetAMTOption leaves a boot option of AMT_BootSettingData behind for the next boot, as another console
// would: BIOSSetup, UseIDER, SecureErase and the like.
func (b *BMC) SetAMTOption(name, value string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.amt.options[name] = value
	b.amt.role = amtNextSingleUse
}
