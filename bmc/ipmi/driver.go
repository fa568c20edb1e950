// Package ipmi drives a BMC over IPMI 2.0 RMCP+ ("lanplus") with cipher suite 3 on one held session.
//
// Messages, key derivation and ciphers are those of github.com/bougou/go-ipmi. Its client is not used: it
// does not check the authentication code of what it receives, so that a forged datagram can say "off";
// it takes plain packets within a session; and a malformed one makes it panic on a goroutine of its own.
// The session here is therefore our own, and lets nothing through that does not prove the session's key.
package ipmi

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/bougou/go-ipmi/pkg/command/chassis"
	"github.com/bougou/go-ipmi/pkg/types"
	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
)

// Privilege is the level a session asks for.
type Privilege string

const (
	Administrator Privilege = "administrator" // default; boot options need it on some BMCs
	Operator      Privilege = "operator"      // enough for chassis control
)

// Config of one BMC.
type Config struct {
	Address        string // host:port
	User           string // 16 bytes at most
	Password       bmc.Secret
	Privilege      Privilege
	AttemptTimeout time.Duration // until a request is sent again; default 1 s
	Attempts       int           // default 4
}

// Validate fills in the defaults and names the first key that is wrong.
func (c *Config) Validate() error {
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		return fault.Newf(fault.Invalid, "ipmi config: address: %q is not host:port", c.Address)
	}
	if len(c.User) > 16 {
		return fault.New(fault.Invalid, "ipmi config: user: IPMI allows 16 bytes")
	}
	if len(c.Password.Reveal()) > 20 {
		return fault.New(fault.Invalid, "ipmi config: password: IPMI allows 20 bytes, and cutting it would hide that")
	}
	switch c.Privilege {
	case "":
		c.Privilege = Administrator
	case Administrator, Operator:
	default:
		return fault.Newf(fault.Invalid, "ipmi config: privilege: %q is neither administrator nor operator", c.Privilege)
	}
	if c.AttemptTimeout <= 0 {
		c.AttemptTimeout = time.Second
	}
	if c.Attempts <= 0 {
		c.Attempts = 4
	}
	return nil
}

func (c *Config) privilege() types.PrivilegeLevel {
	if c.Privilege == Operator {
		return types.PrivilegeLevelOperator
	}
	return types.PrivilegeLevelAdministrator
}

// Driver is one logged-in BMC. It implements driver.BMC, driver.Identifier and driver.PowerRestorer.
type Driver struct{ s *session }

var (
	_ driver.BMC           = (*Driver)(nil)
	_ driver.Identifier    = (*Driver)(nil)
	_ driver.PowerRestorer = (*Driver)(nil)
)

// Probe reports whether IPMI 2.0 answers, without credentials.
func Probe(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	s, err := dial(ctx, cfg)
	if err != nil {
		return err
	}
	defer s.conn.Close()
	return s.ping(ctx)
}

// Open logs in.
func Open(ctx context.Context, cfg Config) (*Driver, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s, err := dial(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.conn.Close())
	}
	return &Driver{s: s}, nil
}

func (d *Driver) status(ctx context.Context) (chassis.GetChassisStatusResponse, error) {
	var st chassis.GetChassisStatusResponse
	data, err := d.s.command(ctx, "get chassis status", types.NetFnChassisRequest, 0x01, nil)
	if err != nil {
		return st, err
	}
	if err := st.Unpack(data); err != nil {
		return st, fault.Newf(fault.Internal, "chassis status: %w", err)
	}
	return st, nil
}

// Power reads the chassis status. IPMI knows the power-good signal only: a machine going down is on until
// it is off.
func (d *Driver) Power(ctx context.Context) (driver.Reading, error) {
	st, err := d.status(ctx)
	if err != nil {
		return driver.Reading{State: driver.PowerUnknown}, err
	}
	r := driver.Reading{State: driver.PowerOff, At: time.Now(), Source: "ipmi", Detail: "chassis power off"}
	if st.PowerIsOn {
		r.State, r.Detail = driver.PowerOn, "chassis power on"
	}
	return r, nil
}

// SetPower sends Chassis Control (section 28.3) when the state read before differs from the end wanted.
func (d *Driver) SetPower(ctx context.Context, t driver.Target) error {
	control, end := chassis.ChassisControlPowerDown, driver.PowerOff
	switch t {
	case driver.On:
		control, end = chassis.ChassisControlPowerUp, driver.PowerOn
	case driver.ShutDown:
		control = chassis.ChassisControlSoftShutdown
	case driver.Off:
	default:
		return fault.Newf(fault.Invalid, "power target %q", t)
	}
	r, err := d.Power(ctx)
	if err != nil {
		return err
	}
	if r.State == end {
		return nil
	}
	_, err = d.s.command(ctx, "chassis control "+string(t), types.NetFnChassisRequest, 0x02, []byte{byte(control)})
	if fault.Is(err, fault.Busy) {
		// D5h is how "already there" is said; only the state decides (hazard H05).
		if now, rerr := d.Power(ctx); rerr == nil && now.State == end {
			return nil
		}
	}
	return err
}

// Boot reads boot option parameter 5, the boot flags (table 28-14).
func (d *Driver) Boot(ctx context.Context) (driver.BootOverride, error) {
	data, err := d.s.command(ctx, "get boot flags", types.NetFnChassisRequest, 0x09, []byte{5, 0, 0})
	if err != nil {
		return driver.BootOverride{}, err
	}
	if len(data) < 7 {
		return driver.BootOverride{}, fault.Newf(fault.Internal, "boot flags: %d bytes, want 7", len(data))
	}
	valid := data[1]&0x80 == 0 // bit 7 of the parameter byte: marked invalid
	return parseBootFlags(valid, [2]byte(data[2:4])), nil
}

func parseBootFlags(valid bool, b [2]byte) driver.BootOverride {
	if !valid || b[0]&0x80 == 0 {
		return driver.BootOverride{Device: driver.BootDefault}
	}
	out := driver.BootOverride{Once: b[0]&0x40 == 0, Mode: driver.FirmwareBIOS}
	if b[0]&0x20 != 0 {
		out.Mode = driver.FirmwareUEFI
	}
	switch sel := types.BootDeviceSelector(b[1] >> 2 & 0x0f); sel {
	case types.BootDeviceSelectorNoOverride:
		return driver.BootOverride{Device: driver.BootDefault}
	case types.BootDeviceSelectorForcePXE:
		out.Device = driver.BootPXE
	case types.BootDeviceSelectorForceHardDrive:
		out.Device = driver.BootDisk
	default:
		out.Device = driver.BootDevice(sel.String()) // somebody else's choice, equal to none of ours
	}
	return out
}

// SetBoot sets the boot flags. Parameter 3 asks the BMC to keep them beyond the 60 s after which it may
// drop them; parameters 0 and 3 are optional, and a BMC without them gets the flags alone.
func (d *Driver) SetBoot(ctx context.Context, b driver.BootOverride) error {
	var flags [5]byte
	if b.Device != driver.BootDefault {
		flags[0] = 0x80
		if !b.Once {
			flags[0] |= 0x40
		}
		if b.Mode == driver.FirmwareUEFI {
			flags[0] |= 0x20
		}
		switch b.Device {
		case driver.BootPXE:
			flags[1] = byte(types.BootDeviceSelectorForcePXE) << 2
		case driver.BootDisk:
			flags[1] = byte(types.BootDeviceSelectorForceHardDrive) << 2
		case driver.BootHTTP:
			return fault.New(fault.Unsupported, "IPMI has no HTTP boot device")
		default:
			return fault.Newf(fault.Invalid, "boot device %q", b.Device)
		}
	}
	set := func(what string, data ...byte) error {
		_, err := d.s.command(ctx, what, types.NetFnChassisRequest, 0x08, data)
		return err
	}
	lenient := func(err error) error {
		if k := fault.KindOf(err); err != nil && (k == fault.Unsupported || k == fault.Invalid || k == fault.Internal) {
			return nil
		}
		return err
	}
	if err := lenient(set("set in progress", 0, 1)); err != nil {
		return err
	}
	if err := lenient(set("keep boot flags valid", 3, 0x08)); err != nil {
		return err
	}
	err := set("set boot flags", append([]byte{5}, flags[:]...)...)
	return errors.Join(err, lenient(set("set complete", 0, 0)))
}

// SetPowerRestore sets the policy (section 28.8) and reads it back from the chassis status.
func (d *Driver) SetPowerRestore(ctx context.Context, stayOff bool) error {
	want := chassis.PowerRestorePolicyPrevious
	if stayOff {
		want = chassis.PowerRestorePolicyAlwaysOff
	}
	st, err := d.status(ctx)
	if err != nil || st.PowerRestorePolicy == want {
		return err
	}
	if _, err := d.s.command(ctx, "set power restore policy", types.NetFnChassisRequest, 0x06, []byte{byte(want)}); err != nil {
		return err
	}
	if st, err = d.status(ctx); err != nil {
		return err
	}
	if st.PowerRestorePolicy != want {
		return &fault.Error{Kind: fault.Unverified, What: "power restore policy", Evidence: "accepted, but reads " + st.PowerRestorePolicy.String()}
	}
	return nil
}

// Identity reads the system GUID and FRU device 0.
func (d *Driver) Identity(ctx context.Context) (driver.Inventory, error) {
	var inv driver.Inventory
	guid, err := d.s.command(ctx, "get system GUID", types.NetFnAppRequest, 0x37, nil)
	switch {
	case err == nil && len(guid) == 16:
		inv.UUID = uuidOf([16]byte(guid))
	case err != nil && !absent(err):
		return inv, err
	}
	raw, err := d.readFRU(ctx, 0)
	if err != nil {
		if absent(err) {
			return inv, nil
		}
		return inv, err
	}
	f := parseFRU(raw)
	inv.Manufacturer, inv.Model, inv.Serial = f.manufacturer, f.model, f.serial
	return inv, nil
}

// Inventory is the Identity: IPMI has no standard way to read the addresses of NICs and HBAs.
func (d *Driver) Inventory(ctx context.Context) (driver.Inventory, error) { return d.Identity(ctx) }

// absent reports whether the BMC said that it has no such thing.
func absent(err error) bool {
	k := fault.KindOf(err)
	return k == fault.Unsupported || k == fault.NotFound || k == fault.Invalid || k == fault.Internal
}

// Close ends the session.
func (d *Driver) Close(ctx context.Context) error { return d.s.close(ctx) }
