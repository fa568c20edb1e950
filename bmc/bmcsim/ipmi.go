package bmcsim

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"time"

	ipmibmc "github.com/bougou/go-ipmi/pkg/bmc"
	"github.com/bougou/go-ipmi/pkg/clock"
	"github.com/bougou/go-ipmi/pkg/command/chassis"
	"github.com/bougou/go-ipmi/pkg/hal"
	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/protocol"
	"github.com/bougou/go-ipmi/pkg/server"
	"github.com/bougou/go-ipmi/pkg/types"
	"rerack.dev/rerack/bmc/driver"
)

// registry is the command table that all BMCs of a farm share; a command finds its BMC by the HAL.
type registry struct{ *handlers.Registry }

func newRegistry() *registry {
	r := handlers.NewRegistry()
	r.Use(func(next handlers.Handler) handlers.Handler {
		return handlers.HandlerFunc(func(ctx context.Context, h *handlers.HandlerContext, req []byte) ([]byte, types.CompletionCode, error) {
			if hw, ok := h.BMC.HAL().(*hardware); ok && h.Session != nil {
				if hw.b.take(func(f *Faults) *int { return &f.Refuse503 }) {
					return nil, types.CodeNodeBusy, nil
				}
			}
			return next.Handle(ctx, h, req)
		})
	})
	handlers.RegisterAllHandlers(r)
	withHardware := func(cmd types.Command, fn func(*hardware, []byte) ([]byte, types.CompletionCode)) {
		r.RegisterFunc(cmd, func(_ context.Context, h *handlers.HandlerContext, req []byte) ([]byte, types.CompletionCode, error) {
			hw, ok := h.BMC.HAL().(*hardware)
			if !ok {
				return nil, types.CodeNotSupported, nil
			}
			out, cc := fn(hw, req)
			return out, cc, nil
		})
	}
	withHardware(types.CommandGetSystemGUID, (*hardware).systemGUID)
	withHardware(types.CommandGetChassisStatus, (*hardware).chassisStatus)
	withHardware(types.CommandSetPowerRestorePolicy, (*hardware).setRestorePolicy)
	withHardware(types.CommandChassisControl, (*hardware).chassisControl)
	return &registry{r}
}

// ipmiServer is the IPMI side of one BMC.
type ipmiServer struct {
	b    *BMC
	srv  *server.Server
	core *ipmibmc.BMC

	mu       sync.Mutex
	sessions map[uint32]struct{}
}

func newIPMIServer(b *BMC, conn *net.UDPConn, regs *registry) *ipmiServer {
	s := &ipmiServer{b: b, sessions: map[uint32]struct{}{}}
	info := ipmibmc.DeviceInfo{DeviceID: 0x20, DeviceRevision: 1, FirmwareMajor: 1, IPMIVersion: 0x20, ManufacturerID: 0x157, ProductID: 1}
	s.core = ipmibmc.New(info, guidOf(b.cfg.Backend.Identity().UUID), &hardware{b: b}, ipmibmc.WithClock(idleClock{clock.Real}),
		ipmibmc.WithV15Disabled(), ipmibmc.WithCipherSuites([]types.CipherSuiteID{3, 17}))
	for i, u := range b.cfg.Users {
		user, err := s.core.Users.Add(uint8(i+2), u.User) // 1 is the anonymous user
		if err != nil {
			continue // more than IPMI's 62 users: the rest have Redfish only
		}
		user.SetPassword([]byte(u.Password.Reveal()))
		user.Enabled = true
		user.ChannelAccess[1] = ipmibmc.UserChannelAccess{MaxPrivilege: ipmibmc.PrivilegeLevelAdministrator, Enabled: true}
	}
	s.srv = server.NewServer(s.core, &packets{UDPConn: conn, s: s}, server.WithHandlerRegistry(regs.Registry), server.WithServerBufferSize(1024))
	return s
}

func (s *ipmiServer) serve() { _ = s.srv.Serve(context.Background()) } // ends when the socket closes

func (s *ipmiServer) close() error {
	if err := s.srv.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// refuseLogins changes the passwords on the BMC, or changes them back.
func (s *ipmiServer) refuseLogins(refuse bool) {
	for i, u := range s.b.cfg.Users {
		pw := u.Password.Reveal()
		if refuse {
			pw = token()[:16]
		}
		_ = s.core.Users.Update(uint8(i+2), func(user *ipmibmc.User) error { // a user that was not added is none to refuse
			user.SetPassword([]byte(pw))
			return nil
		})
	}
}

func (s *ipmiServer) endSessions() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.sessions {
		_ = s.core.Sessions.Close(id) // an error means that it is closed already
	}
	clear(s.sessions)
}

// idleClock keeps the server from waking up every three seconds for every BMC: sessions that have
// expired are thrown out when the next one is opened.
type idleClock struct{ clock.Clock }

type noTicks struct{}

func (noTicks) C() <-chan time.Time { return nil }
func (noTicks) Stop()               {}

func (idleClock) NewTicker(time.Duration) clock.Ticker { return noTicks{} }

// packets is the UDP socket with faults.
type packets struct {
	*net.UDPConn
	s *ipmiServer
}

func (p *packets) ReadFrom(buf []byte) (int, net.Addr, error) {
	for {
		n, addr, err := p.UDPConn.ReadFrom(buf)
		if err != nil {
			return n, addr, err
		}
		p.s.b.count("ipmi.packet")
		if f := p.s.b.Faults(); f.Hang || f.Drop {
			continue
		}
		if _, _, typ, _, _, ok := protocol.ParseRMCPPlusHeader(buf[:n]); ok && buf[4] == 0x06 && typ == uint8(types.PayloadTypeRAKPMessage1) {
			p.s.b.count("login")
		}
		return n, addr, nil
	}
}

func (p *packets) WriteTo(data []byte, addr net.Addr) (int, error) {
	if _, _, typ, _, payload, ok := protocol.ParseRMCPPlusHeader(data); ok && data[4] == 0x06 &&
		typ == uint8(types.PayloadTypeRmcpOpenSessionResponse) && len(payload) >= 12 {
		p.s.mu.Lock()
		p.s.sessions[binary.LittleEndian.Uint32(payload[8:12])] = struct{}{}
		p.s.mu.Unlock()
	}
	f := p.s.b.Faults()
	if f.Hang || f.Drop || p.s.b.take(func(f *Faults) *int { return &f.ResetConn }) {
		return len(data), nil
	}
	if f.Delay > 0 {
		late := append([]byte(nil), data...)
		time.AfterFunc(f.Delay, func() { _, _ = p.UDPConn.WriteTo(late, addr) }) // a lost datagram is UDP's right
		return len(data), nil
	}
	return p.UDPConn.WriteTo(data, addr)
}

// hardware is what the IPMI commands act on.
type hardware struct {
	b *BMC
}

var _ hal.ChassisHAL = (*hardware)(nil)

func (h *hardware) Chassis() hal.ChassisHAL { return h }
func (h *hardware) Sensors() hal.SensorHAL  { return nil }
func (h *hardware) Storage() hal.StorageHAL { return h }
func (h *hardware) Network() hal.NetworkHAL { return nil }
func (h *hardware) GPIO() hal.GPIOHAL       { return nil }
func (h *hardware) I2C() hal.I2CHAL         { return nil }
func (h *hardware) Console() hal.ConsoleHAL { return nil }
func (h *hardware) Close() error            { return nil }
func (h *hardware) FRU() hal.FRUStore       { return h }
func (h *hardware) SDR() hal.SDRStore       { return nil }

// isOn is the power-good signal: IPMI has two states, and a machine that is changing still has power.
func (h *hardware) isOn() bool { return h.b.power() != driver.PowerOff }

func (h *hardware) systemGUID([]byte) ([]byte, types.CompletionCode) {
	g := guidOf(h.b.identity().UUID)
	return g[:], types.CodeOK
}

func (h *hardware) chassisStatus([]byte) ([]byte, types.CompletionCode) {
	st := chassis.GetChassisStatusResponse{PowerIsOn: h.isOn()}
	switch h.b.cfg.Backend.PowerRestore() {
	case AlwaysOff:
		st.PowerRestorePolicy = chassis.PowerRestorePolicyAlwaysOff
	case LastState:
		st.PowerRestorePolicy = chassis.PowerRestorePolicyPrevious
	case AlwaysOn:
		st.PowerRestorePolicy = chassis.PowerRestorePolicyAlwaysOn
	}
	return st.Pack(), types.CodeOK
}

// setRestorePolicy is IPMI 2.0 section 28.8; the answer tells which policies are supported.
func (h *hardware) setRestorePolicy(req []byte) ([]byte, types.CompletionCode) {
	if len(req) < 1 {
		return nil, types.CodeRequestDataTruncated
	}
	all := []RestorePolicy{AlwaysOff, LastState, AlwaysOn}
	if n := int(req[0] & 7); n < len(all) {
		if err := h.b.setRestore(all[n]); err != nil {
			return nil, types.CodeUnspecifiedError
		}
	}
	return []byte{0x07}, types.CodeOK
}

// chassisControl is IPMI 2.0 section 28.3.
func (h *hardware) chassisControl(req []byte) ([]byte, types.CompletionCode) {
	if len(req) < 1 {
		return nil, types.CodeRequestDataTruncated
	}
	button, ok := map[byte]Button{0: PressOff, 1: PressOn, 2: PressCycle, 3: PressReset, 5: PressGraceful}[req[0]&0x0f]
	if !ok {
		return nil, types.CodeParameterOutOfRange
	}
	switch err := h.b.press(button); {
	case errors.Is(err, ErrRefused):
		return nil, types.CodeNotSupported // D5h: not in the present state
	case err != nil:
		return nil, types.CodeUnspecifiedError
	}
	return nil, types.CodeOK
}

func (h *hardware) SetBootFlags(_ context.Context, f *types.BootOptionParam_BootFlags) error {
	if h.b.cfg.Profile.NoIPMIBoot {
		h.b.count("boot.set")
		return nil
	}
	o := driver.BootOverride{Device: driver.BootDefault}
	if f.BootFlagsValid {
		switch f.BootDeviceSelector {
		case types.BootDeviceSelectorForcePXE:
			o.Device = driver.BootPXE
		case types.BootDeviceSelectorForceHardDrive:
			o.Device = driver.BootDisk
		}
	}
	if o.Device != driver.BootDefault {
		o.Once, o.Mode = !f.Persist, driver.FirmwareBIOS
		if f.BIOSBootType == types.BIOSBootTypeEFI {
			o.Mode = driver.FirmwareUEFI
		}
	}
	return h.b.setBoot(o)
}

func (h *hardware) GetBootFlags(context.Context) (*types.BootOptionParam_BootFlags, error) {
	o := h.b.boot()
	f := &types.BootOptionParam_BootFlags{}
	switch o.Device {
	case driver.BootPXE:
		f.BootDeviceSelector = types.BootDeviceSelectorForcePXE
	case driver.BootDisk:
		f.BootDeviceSelector = types.BootDeviceSelectorForceHardDrive
	default:
		return f, nil
	}
	f.BootFlagsValid, f.Persist = true, !o.Once
	if o.Mode == driver.FirmwareUEFI {
		f.BIOSBootType = types.BIOSBootTypeEFI
	}
	return f, nil
}

func (h *hardware) SetBootInfoAcknowledge(context.Context, *types.BootOptionParam_BootInfoAcknowledge) error {
	return nil
}

func (h *hardware) GetBootInfoAcknowledge(context.Context) (*types.BootOptionParam_BootInfoAcknowledge, error) {
	return nil, hal.ErrNotSupported
}

// The rest of hal.ChassisHAL is reached by commands that this BMC answers itself, or not at all.

func (h *hardware) PowerState(context.Context) (bool, error)     { return h.isOn(), nil }
func (h *hardware) SetPower(context.Context, bool) error         { return hal.ErrNotSupported }
func (h *hardware) PowerCycle(context.Context) error             { return hal.ErrNotSupported }
func (h *hardware) ColdReset(context.Context) error              { return hal.ErrNotSupported }
func (h *hardware) WarmReset(context.Context) error              { return hal.ErrNotSupported }
func (h *hardware) Identify(context.Context, uint8) error        { return nil }
func (h *hardware) IntrusionState(context.Context) (bool, error) { return false, hal.ErrNotSupported }
func (h *hardware) Write(context.Context, uint8, []byte) error   { return hal.ErrNotSupported }
func (h *hardware) Delete(context.Context, uint8) error          { return hal.ErrNotSupported }
func (h *hardware) DeviceIDs(context.Context) ([]uint8, error)   { return []uint8{0}, nil }

// Read returns the FRU inventory of device 0.
func (h *hardware) Read(_ context.Context, device uint8) ([]byte, error) {
	if device != 0 {
		return nil, hal.ErrNotFound
	}
	inv := h.b.identity()
	return fruOf(or(inv.Manufacturer, h.b.cfg.Profile.Manufacturer), or(inv.Model, h.b.cfg.Profile.Model), inv.Serial), nil
}
