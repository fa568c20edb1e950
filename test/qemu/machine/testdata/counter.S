# A disk that is an operating system: it counts in its second sector, says each number on the serial
# console once the sector is written, and goes on four times a second. Built with
#   as -o counter.o counter.S && ld -m elf_x86_64 -Ttext 0x7c00 --oformat binary -o counter.bin counter.o
.code16
.globl _start
_start:
	xorw %ax, %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %ss
	movw $0x7c00, %sp
	sti
	movb %dl, drive		# the firmware says from which disk it booted
	movb $2, %ah		# read
	call sector
	jc failed
count:	incw number
	movb $3, %ah		# write
	call sector
	jc failed
	movw $counted, %si
	call say
	movw number, %bx
	movw $4, %cx
digit:	rolw $4, %bx
	movb %bl, %al
	andb $15, %al
	addb $'0', %al
	cmpb $'9', %al
	jbe 1f
	addb $('a' - '0' - 10), %al
1:	call put
	loop digit
	movw $newline, %si
	call say
	movw $3, %cx		# CX:DX microseconds
	movw $0xd090, %dx
	movb $0x86, %ah
	int $0x15
	jmp count
failed:	movw $fault, %si
	call say
	hlt
	jmp failed

# sector does what AH says with the second sector of the disk. Carry is an error.
sector:	movb $1, %al
	movw $2, %cx
	movb drive, %dl
	xorb %dh, %dh
	movw $number, %bx
	int $0x13
	ret

say:	lodsb
	testb %al, %al
	jz 1f
	call put
	jmp say
1:	ret

put:	pushw %dx
	pushw %ax
	movw $0x3fd, %dx	# line status of the first serial port
1:	inb %dx, %al
	testb $0x20, %al	# ready for the next
	jz 1b
	popw %ax
	movw $0x3f8, %dx
	outb %al, %dx
	popw %dx
	ret

counted: .asciz "\r\ndisk: "
fault:	.asciz "\r\ndisk: error\r\n"
newline: .asciz "\r\n"
drive:	.byte 0
	.org 510
	.word 0xaa55
number = 0x7e00
